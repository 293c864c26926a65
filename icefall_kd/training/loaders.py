"""The loaders of a run, for one process of it."""

from icefall_kd.cpu import default_workers
from icefall_kd.data.augment import SpecAugment
from icefall_kd.data.batches import Loader, make_loader
from icefall_kd.training.distributed import World
from icefall_kd.training.setup import Setup


def make_train_loader(setup: Setup, world: World) -> Loader:
    """Return this process's batches of the training sets, shuffled and augmented."""
    data = setup.config.data
    augment = None
    if data.spec_augment:
        augment = SpecAugment(time_warp=data.time_warp_factor)
    return make_loader(
        setup.train_stream,
        fields=setup.fields,
        tokenizer=setup.tokenizer,
        max_duration=data.max_duration,
        seed=setup.config.seed,
        rank=world.rank,
        world_size=world.size,
        num_workers=default_workers() if data.num_workers < 0 else data.num_workers,
        num_buckets=data.num_buckets,
        spec_augment=augment,
        missing=data.missing,
        live=setup.live,
        device=world.device,
    )


def make_dev_loader(setup: Setup, world: World) -> Loader:
    """Return this process's batches of the dev set, in order and unchanged."""
    data = setup.config.data
    return make_loader(
        setup.dev_stream,
        fields=setup.fields,
        tokenizer=setup.tokenizer,
        max_duration=data.max_duration,
        shuffle=False,
        seed=setup.config.seed,
        rank=world.rank,
        world_size=world.size,
        missing=data.missing,
        live=setup.live,
        device=world.device,
    )
