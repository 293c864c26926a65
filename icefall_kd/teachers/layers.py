"""Which layers of an encoder a teacher says: one, several, or their weighted sum.

Layer k is the input of block k, so 0 is what the first block gets and the number of
blocks is the encoder's output; negative numbers count from the end, -1 the output.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Optional, Union

from torch import Tensor

Layers = Union[str, int, Sequence[int]]


@dataclass(frozen=True)
class LayerChoice:
    """The layers asked for; see :func:`choose_layers`.

    Attributes:
      layers:  their numbers, none negative, in the order asked for.
      weights: of their sum; None when each layer is a field of its own.
    """

    layers: tuple[int, ...]
    weights: Optional[tuple[float, ...]] = None

    @property
    def highest(self) -> int:
        """Return the number of blocks that must be run."""
        return max(self.layers)

    def fields(self, name: str) -> dict[str, dict]:
        """Return field name -> what its fingerprint says of the layers.

        A sum and a single layer are the field ``name``; several layers are
        ``<name>_layer<k>`` each.
        """
        if self.weights is not None or len(self.layers) == 1:
            weights = list(self.weights) if self.weights is not None else None
            return {name: {"layers": list(self.layers), "layer_weights": weights}}
        return {
            f"{name}_layer{k}": {"layers": [k], "layer_weights": None}
            for k in self.layers
        }

    def pick(self, name: str, hidden: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """Return field name -> its values.

        Args:
          hidden: layer -> (N, T, D), of all the layers asked for.
        """
        if self.weights is None:
            return dict(zip(self.fields(name), (hidden[k] for k in self.layers)))
        weighted = (w * hidden[k].float() for k, w in zip(self.layers, self.weights))
        return {name: sum(weighted)}


def choose_layers(
    layers: Layers, layer_weights: Optional[Sequence[float]], num_layers: int
) -> LayerChoice:
    """Read the options ``layers`` and ``layer_weights``.

    Args:
      layers:        "last", a number, or several.
      layer_weights: of the sum of several layers, used as they are: they need not
                     add up to 1.
      num_layers:    blocks of the encoder; layers 0..num_layers exist.
    Raises:
      ValueError: if a layer does not exist or is named twice, or the weights do not
        fit the layers.
    """
    if layers == "last":
        layers = num_layers
    wanted = list(layers) if isinstance(layers, (list, tuple)) else [layers]
    if not wanted or not all(type(k) is int for k in wanted):
        raise ValueError(
            f"layers: {layers!r} is neither 'last', nor a number, nor a list of numbers"
        )
    absent = [k for k in wanted if not -num_layers - 1 <= k <= num_layers]
    if absent:
        raise ValueError(
            f"layers: the model has no layer {', '.join(map(str, absent))}: it has "
            f"{num_layers} blocks, so layers 0 to {num_layers}, or -1 to "
            f"{-num_layers - 1} from the end"
        )
    chosen = tuple(k if k >= 0 else num_layers + 1 + k for k in wanted)
    if len(set(chosen)) != len(chosen):
        raise ValueError(f"layers: {wanted} names one layer twice")
    if layer_weights is None:
        return LayerChoice(chosen)
    if len(layer_weights) != len(chosen):
        raise ValueError(
            f"layer_weights: {len(layer_weights)} weights for {len(chosen)} layers"
        )
    return LayerChoice(chosen, tuple(float(w) for w in layer_weights))
