"""Every YAML under conf/ composes, converts, and gives the reviewed golden; a typo or a wrong value says so."""

import json
import os
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException

from avrec_ray import config
from avrec_ray.config import JobConfig
from avrec_ray.errors import ConfigError
from avrec_ray.towers.encoders import AudioEncoder

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
GOLDEN = Path(__file__).parent / "golden" / "conf.json"
JOBS = sorted(path.stem for path in CONF.glob("*.yaml") if path.stem != "base")
GROUPS = sorted(path for path in CONF.glob("*/*.yaml") if path.parent.name != "experiment")
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PWD", "/project")
    monkeypatch.setenv("AVREC_EVENTS_URL", "postgresql+psycopg://events")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    monkeypatch.delenv("AVREC_STORAGE_PATH", raising=False)
    monkeypatch.delenv("AVREC_SHARED_DATA", raising=False)


def typed(job: str, *overrides: str) -> JobConfig:
    config.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return config.to_typed(compose(job, overrides=list(overrides)))


def all_configs() -> dict[str, object]:
    found = {f"{job}.yaml": config.to_dict(typed(job)) for job in JOBS}
    for path in GROUPS:
        found[f"{path.parent.name}/{path.name}"] = config.to_dict(typed("full_loop", f"{path.parent.name}={path.stem}"))
    for name in EXPERIMENTS:
        found[f"experiment/{name}.yaml"] = config.to_dict(typed("full_loop", f"experiment={name}"))
    return found


def deviations(configs: dict[str, object]) -> dict[str, object]:
    """Each config as its flat differences from the bare schema: short enough to review."""
    base = _flat(config.to_dict(JobConfig()))
    return {
        name: {k: v for k, v in _flat(values).items() if k not in base or base[k] != v}
        for name, values in configs.items()
    }


def _flat(values: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(values, dict) or not values:
        return {prefix.rstrip("."): values}
    return {k: v for key, value in values.items() for k, v in _flat(value, f"{prefix}{key}.").items()}


def test_every_yaml_matches_the_golden() -> None:
    """AVREC_UPDATE_GOLDEN=1 writes it anew; review the difference."""
    found = deviations(all_configs())
    if os.environ.get("AVREC_UPDATE_GOLDEN") == "1":
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    assert found == json.loads(GOLDEN.read_text())


def test_every_job_has_a_yaml_and_every_yaml_a_job() -> None:
    assert sorted(path.stem for path in (ROOT / "jobs").glob("*.py") if path.stem != "__init__") == JOBS


def test_towers_take_their_input_shapes_from_media() -> None:
    job = typed("full_loop", "media.clip_seconds=2.0", "media.num_frames=4", "media.max_clips=3")
    assert (job.towers.num_mel_frames, job.towers.num_frames, job.towers.max_clips) == (200, 4, 3)


@pytest.mark.parametrize(("media", "shape"), [("clips", (80, 400)), ("ast", (128, 398)), ("clap", (64, 401))])
def test_towers_take_the_log_mel_of_each_front_end(media: str, shape: tuple[int, int]) -> None:
    job = typed("full_loop", f"media={media}")
    assert (job.towers.num_mel_bins, job.towers.num_mel_frames) == job.media.log_mel_shape == shape
    tokens = AudioEncoder(job.towers)(torch.zeros(2, *shape))
    assert tokens.shape == (2, job.towers.tokens_per_clip, job.towers.model_dim)


def test_stream_mode_composes() -> None:
    assert typed("pretrain", "data.mode=stream").data.random_clips
    with pytest.raises(ConfigError, match=r"data.mode='streamed' is not one of \['cached', 'stream'\]"):
        typed("pretrain", "data.mode=streamed")


def test_targets_of_exposure_are_given_by_group() -> None:
    job = typed("recommend", "policy.exposure_groups=warm", "+policy.exposure_targets.cold=0.3")
    assert job.policy.exposure_targets == {"cold": 0.3}
    with pytest.raises(ConfigError, match=r"policy.exposure_targets.cold='fair'; expected a share"):
        typed("recommend", "+policy.exposure_targets.cold=fair")


def test_unknown_key_is_refused_when_composed() -> None:
    with pytest.raises(ConfigCompositionException, match="finetune.epoch"):
        typed("full_loop", "training.finetune.epoch=3")


def test_unknown_group_choice_lists_the_choices() -> None:
    with pytest.raises(Exception, match="synthetic"):
        typed("full_loop", "data=sintetic")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.finetune.negatives=hard", r"finetune.negatives='hard' is not one of"),
        ("towers.dropout=1.5", r"towers.dropout=1.5 is outside"),
        ("cluster.num_workers=0", r"cluster.num_workers=0 is outside"),
        ("data.items=items.parquet", "absolute"),
        ("evaluation.cutoffs=[]", "evaluation.cutoffs"),
        ("training.pretrain.precision=int8", r"precision='int8' is not one of"),
    ],
)
def test_value_out_of_range_names_got_and_expected(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        typed("full_loop", override)


def test_elastic_training_keeps_its_global_batch_or_is_refused() -> None:
    elastic = ["cluster.num_workers=3", "cluster.min_workers=2", "cluster.train_resource=train"]
    with pytest.raises(ConfigError, match=r"cluster.min_workers=2 needs training.pretrain.global_batch_size"):
        typed("full_loop", *elastic)
    sizes = ["training.pretrain.global_batch_size=64", "training.finetune.global_batch_size=66"]
    with pytest.raises(ConfigError, match="global_batch_size=64 does not divide among 3 workers; take 66"):
        typed("full_loop", *elastic, *sizes)
    assert typed("full_loop", *elastic, sizes[1], sizes[0].replace("64", "66")).cluster.min_workers == 2


def test_wrong_type_is_refused_when_composed() -> None:
    with pytest.raises(ConfigCompositionException, match="num_workers"):
        typed("full_loop", "cluster.num_workers=two")


def test_dict_of_a_job_gives_the_job_back() -> None:
    job = typed("full_loop", "experiment=ml_100k")
    assert config.from_mapping(json.loads(json.dumps(config.to_dict(job)))) == job
