"""The commands that train.sh runs, their order and their interruption."""

import os
import shutil
import signal
import subprocess
import time

import pytest
from torch.distributed.run import parse_args


@pytest.fixture
def train_sh(run_script):
    """``train_sh(systems, *options)`` returns the process and its trainings."""
    run_script.add_fields("train", "whisper_tiny_en", "whisper_base")

    def run(systems, *options):
        done, commands = run_script(
            "train.sh", "--jobs", "1", "--systems", systems, *options
        )
        run.averages = [c for c in commands if "bin.average " in c]
        return done, [c for c in commands if "bin.train " in c]

    run.recipe = run_script.recipe
    return run


def launched(command):
    """Return the number of processes and the module that torchrun starts."""
    words = command.split()
    assert words[:2] == ["-m", "torch.distributed.run"]
    read = parse_args(words[2:])
    assert read.module and read.standalone
    return read.nproc_per_node, read.training_script


def confs(command):
    """Return the configuration files of a command in their order."""
    words = command.split()
    return [b for a, b in zip(words, words[1:]) if a == "--config"]


def test_a_system_with_teachers_is_pre_trained_first(train_sh):
    done, (pretrain, finetune) = train_sh("both_unlabelled+essence")
    assert done.returncode == 0, done.stderr
    assert "both_unlabelled/pretrain" in pretrain and "embedding.teachers" in pretrain
    assert "--init-encoder exp/quick/unified/both_unlabelled/pretrain" in finetune
    assert confs(finetune)[-1] == "conf/kd/essence.yaml"


def test_random_draws_a_teacher_for_each_utterance(train_sh):
    done, (pretrain, _) = train_sh("both_random_unlabelled")
    assert done.returncode == 0, done.stderr
    assert "--terms.embedding.choose random" in pretrain
    assert '"whisper_tiny_en": 0.5' in pretrain and "unlabelled" in pretrain
    done, commands = train_sh("both")
    assert "--terms.embedding.choose all" in commands[-2]


def test_parts_are_configuration_files_in_their_order(train_sh):
    done, (finetune,) = train_sh(
        "baseline+pseudo+one_best", "--profile", "full", "--variants", "unified"
    )
    assert done.returncode == 0, done.stderr
    assert confs(finetune)[-2:] == ["conf/kd/pseudo.yaml", "conf/kd/one_best.yaml"]
    assert "--data.train [train, unlabelled_en_whisper_base]" in finetune
    assert "baseline+pseudo+one_best/finetune" in finetune
    done, commands = train_sh("baseline+one_best")
    assert "--data.train [train] " in commands[-1]


def test_the_baseline_starts_from_random_weights(train_sh):
    done, (finetune,) = train_sh("baseline")
    assert done.returncode == 0, done.stderr
    assert "init" not in finetune and "from_student" not in finetune


def test_an_unknown_variant_is_reported_before_files_are_written(train_sh):
    done, commands = train_sh("baseline", "--variants", "unified unifed")
    assert done.returncode == 1 and commands == []
    assert "'unifed'" in done.stderr and "unified" in done.stderr
    assert not (train_sh.recipe / "exp").exists()


def test_student_starts_from_the_checkpoint_of_its_teacher(train_sh):
    options = ("--variants", "streaming")
    done, commands = train_sh("student student+hidden", *options)
    assert done.returncode != 0 and commands == []
    assert "no exp/student/pretrained.pt" in done.stderr
    assert "teachers.sh" in done.stderr
    checkpoint = train_sh.recipe / "exp/student/pretrained.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"")
    done, (alone, distilled) = train_sh("student student+hidden", *options)
    assert done.returncode == 0, done.stderr
    for command in (alone, distilled):
        assert confs(command)[-1] == "conf/from_student.yaml"
        assert "conf/streaming.yaml" in confs(command)
        assert "init-encoder" not in command
        assert "--num-epochs 3 " in command
    assert set(confs(distilled)) - set(confs(alone)) == {"conf/kd/hidden.yaml"}


def test_a_seed_in_a_name_trains_its_own_encoder(train_sh):
    done, (pretrain, finetune) = train_sh("both_unlabelled+pseudo@43", "--seed", "7")
    assert done.returncode == 0, done.stderr
    for command in (pretrain, finetune):
        assert command.endswith(" --seed 43")
    assert "both_unlabelled@43/pretrain " in pretrain and "unlabelled" in pretrain
    assert "both_unlabelled+pseudo@43/finetune " in finetune
    assert "--init-encoder exp/quick/unified/both_unlabelled@43/pretrain" in finetune
    assert confs(finetune)[-1] == "conf/kd/pseudo.yaml"
    assert "unlabelled_en_quick_whisper_base]" in finetune
    done, commands = train_sh("baseline@43 baseline", "--seed", "7")
    own_seed, common_seed = commands[-2:]
    assert "baseline@43/finetune " in own_seed
    assert "init" not in own_seed and own_seed.endswith(" --seed 43")
    assert "baseline/finetune " in common_seed
    assert common_seed.endswith(" --seed 7")


def test_options_of_the_call_apply_to_every_training(train_sh):
    done, commands = train_sh(
        *("both", "--exp", "exp/small", "--student", "conf/small.yaml"),
        *("--epochs", "2", "--avg", "1"),
        *("--num-processes", "2", "--", "--amp", "fp16"),
    )
    assert done.returncode == 0, done.stderr
    assert len(commands) == 2
    for command in commands:
        assert launched(command) == ("2", "icefall_kd.bin.train")
        assert "--exp-dir exp/small/unified/both/" in command
        assert confs(command)[0] == "conf/small.yaml"
        assert " --num-epochs 2 " in command
        assert command.endswith(" --seed 42 --amp fp16")
    assert all(command.endswith(" --avg 1") for command in train_sh.averages)
    assert "--init-encoder exp/small/unified/both/pretrain/" in commands[1]


@pytest.mark.parametrize(
    "gpu, options, expected",
    [
        (True, (), 1),
        (True, ("--jobs", "3"), 3),
        (True, ("--", "--device", "cpu"), 4),
        (True, ("--", "--device=cpu"), 4),
        (True, ("--", "--device", "cuda"), 1),
        (False, (), 4),
    ],
)
def test_a_gpu_trains_one_system_at_once(
    run_script, monkeypatch, gpu, options, expected
):
    python = run_script.recipe.parents[2] / "venv/bin/python"
    is_gpu = f"[[ $1 == -c && $2 == *cuda* ]] && exit {int(not gpu)}\n"
    python.write_text(python.read_text().replace("\n", f"\n{is_gpu}", 1))
    monkeypatch.setenv("OMP_NUM_THREADS", "4")  # number of CPUs
    done, _ = run_script("train.sh", "--systems", "baseline", *options)
    assert done.returncode == 0, done.stderr
    assert f", {expected} at once" in done.stderr


def test_ctrl_c_waits_for_the_checkpoints_of_the_trainings(run_script):
    recipe = run_script.recipe
    run_script.add_fields("train", "whisper_tiny_en", "whisper_base")
    python = recipe.parents[2] / "venv/bin/python"
    python.write_text(
        f"{python.read_text().rpartition('printf')[0]}"
        "trap 'sleep 1; echo train: written; exit 143' TERM\n"
        f"echo $$ >>{recipe}/started\n"
        "for _ in {1..600}; do sleep 0.1; done\n"
    )
    process = subprocess.Popen(
        [*("bash", recipe / "train.sh", "--systems", "baseline both"), "--jobs", "2"],
        env={**os.environ, **run_script.env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    started, deadline = recipe / "started", time.monotonic() + 30
    while not started.exists() or len(started.read_text().split()) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130, output
    assert output.count("train: written") == 2
    for system in ("baseline", "both"):
        log = recipe / f"exp/quick/unified/{system}/train.log"
        assert log.read_text().endswith("train: written\n")


@pytest.mark.parametrize("system", ["nobody", "both+nothing", "baseline@x", "both@"])
def test_an_unknown_system_is_reported(train_sh, system):
    done, commands = train_sh(system)
    assert done.returncode != 0 and commands == []
    assert f"system '{system}'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_dry_run_prints_each_command_once_and_runs_none(run_script):
    systems = "both+one_best both+pseudo"
    done, commands = run_script("train.sh", "--dry-run", "--systems", systems)
    assert (done.returncode, commands) == (1, []), done.stderr  # fields are missing
    lines = done.stdout.splitlines()
    assert sum("bin.train " in line for line in lines) == 3  # one pre-training
    assert sum("bin.average " in line for line in lines) == 3
    assert "no field whisper_tiny_en" in done.stderr
    assert not (run_script.recipe / "exp").exists()
    run_script.add_fields("train", "whisper_tiny_en", "whisper_base")
    done, _ = run_script("train.sh", "--dry-run", "--systems", systems)
    assert done.returncode == 0, done.stderr
    done, commands = run_script("train.sh", "--systems", systems, "--jobs", "1")
    assert done.returncode == 0, done.stderr
    printed = [line.replace("'", "") for line in lines]
    assert {f"python {c}" for c in commands} == set(printed)


def test_a_folder_with_a_former_name_is_reported(train_sh):
    old = train_sh.recipe / "exp/quick/unified/both_pool"
    old.mkdir(parents=True)
    done, commands = train_sh("both_unlabelled+pseudo")
    assert done.returncode != 0 and commands == []
    new = "exp/quick/unified/both_unlabelled"
    assert f"mv exp/quick/unified/both_pool {new}" in done.stderr
    old.rename(train_sh.recipe / new)
    done, _ = train_sh("both_unlabelled+pseudo")
    assert done.returncode == 0, done.stderr


def edit_profile(recipe, old, new):
    path = recipe / "conf/profiles.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


FINETUNE_AVG = "    avg: {pseudo: 1, default: 2}\n"  # of the profile quick


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("labelled: &labelled [train]", "labelled: &labelled trian", "data/shar/trian"),
        (FINETUNE_AVG, "    avg: 9\n", "finetune.avg is 9"),
        (FINETUNE_AVG, "    average: 3\n", "'average'"),
        (FINETUNE_AVG, "", "'avg'"),
    ],
)
def test_a_wrong_profile_is_reported_before_training(train_sh, old, new, message):
    edit_profile(train_sh.recipe, old, new)
    done, commands = train_sh("baseline")
    assert done.returncode == 1 and commands == []
    assert message in done.stderr and "Traceback" not in done.stderr


def test_a_profile_without_confs_changes_none(train_sh):
    shutil.rmtree(train_sh.recipe / "conf/quick")
    edit_profile(train_sh.recipe, "labelled: &labelled [train]", "labelled: train")
    edit_profile(train_sh.recipe, "labelled: *labelled", "labelled: train")
    done, (finetune,) = train_sh("baseline")
    assert done.returncode == 0, done.stderr
    assert "conf/quick" not in finetune and "--data.train [train] " in finetune
