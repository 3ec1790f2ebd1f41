"""Sweep files: what is wrong is listed before anything runs, and what arms have in common has one address."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from data_prep.sample.pictures import read_sample
from infra.errors import BadInputError
from pipeline.cleaning import made_by_any
from pipeline.cli import app
from pipeline.sweep import Contender
from pipeline.sweep_runs import Sweep, load_sweep, sweep_hash

CONFIGS = Path(__file__).parents[2] / "pipeline" / "configs"
SHIPPED = sorted(CONFIGS.glob("sweep_*.yaml"))


def load(tmp_path: Path, *overrides: str, **changes: Any) -> Sweep:
    """A small sweep with some fields changed."""
    tree = {
        "name": "small",
        "base": str(CONFIGS / "quickstart.yaml"),
        "set": {"workspace": str(tmp_path / "work"), "training.num_steps": 20, "training.conditioning.start_step": 0},
        "seeds": [0, 1],
        "arms": {"hyperclip": {}, "twin": {"set": {"training.model": "siglip_quickstart"}}},
        "compare": [["hyperclip", "twin"], ["hyperclip", "hyperclip.swapped"]],
        **changes,
    }
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(tree))
    return load_sweep(path, overrides)


def addresses(sweep: Sweep, step: str) -> list[str]:
    return [entry.output_uri for run in sweep.runs for entry in run.planned if entry.step.name == step]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_sweeps_are_valid(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where the folder of pictures lies that a sweep may want
    Path("training").symlink_to(CONFIGS.parents[1] / "training")
    Path("pictures").mkdir()
    for name in (*(f"train-0{number}" for number in range(8)), "eval-family", "eval-concept"):
        pq.write_table(read_sample("evaluation").slice(0, 2), f"pictures/{name}.parquet")
    assert len(load_sweep(path).runs) >= 4


@pytest.mark.parametrize("other", ["ablations", "distillation"])
def test_what_two_shipped_sweeps_call_the_same_is_the_same(other: str) -> None:
    results, others = (yaml.safe_load((CONFIGS / f"sweep_{name}.yaml").read_text()) for name in ("results", other))
    shared = results["arms"].keys() & others["arms"].keys()
    assert {"twin", "hyperclip"} <= shared  # trained once, and compared with each other
    assert {name: results["arms"][name] for name in shared} == {name: others["arms"][name] for name in shared}
    assert results["set"] == others["set"]


def test_the_sweep_that_the_guide_shows_is_valid(tmp_path: Path) -> None:
    guide = (CONFIGS.parents[1] / "docs" / "experiments.md").read_text()
    tree = yaml.safe_load(guide.split("```yaml\n")[1].split("```")[0])
    pictures = tmp_path / "my-pictures.parquet"
    pq.write_table(read_sample("evaluation").slice(0, 2), pictures)
    tree |= {"base": str(CONFIGS / tree["base"])}
    tree["evaluate"]["my-pictures"]["uris"] = [str(pictures)]
    (tmp_path / "guide.yaml").write_text(yaml.safe_dump(tree))
    assert len(load_sweep(tmp_path / "guide.yaml").runs) == 9


def test_each_arm_is_a_run_with_each_seed_and_its_own_settings(tmp_path: Path) -> None:
    sweep = load(tmp_path)
    assert [(run.arm, run.seed) for run in sweep.runs] == [("hyperclip", 0), ("twin", 0), ("hyperclip", 1), ("twin", 1)]
    assert [run.config.training.seed for run in sweep.runs] == [0, 0, 1, 1]
    assert [run.config.training.model for run in sweep.runs] == ["hyperclip_quickstart", "siglip_quickstart"] * 2
    assert {run.config.training.num_steps for run in sweep.runs} == {20}
    assert {run.config.resolved_tracking.experiment for run in sweep.runs} == {"small"}


def test_runs_share_their_data_and_nothing_is_registered(tmp_path: Path) -> None:
    sweep = load(tmp_path)
    assert len(set(addresses(sweep, "shard-train"))) == len(set(addresses(sweep, "shard-evaluation"))) == 1
    assert len(set(addresses(sweep, "train"))) == len(set(addresses(sweep, "evaluate-held-out"))) == 4
    assert not {entry.step.name for run in sweep.runs for entry in run.planned} & {"register", "export", "serve", "evaluate"}


def test_one_seed_more_leaves_the_addresses_of_the_others(tmp_path: Path) -> None:
    few, more = load(tmp_path), load(tmp_path, seeds=[0, 1, 2])
    assert addresses(more, "train")[:4] == addresses(few, "train")
    assert sweep_hash(more) != sweep_hash(few)


def test_other_names_beside_the_pictures_are_another_evaluation_of_the_same_models(tmp_path: Path) -> None:
    names = tmp_path / "names.parquet"
    pq.write_table(read_sample("train").slice(0, 20), names)
    plain, among = load(tmp_path), load(tmp_path, evaluate={"held-out": {"names_from": [str(names)]}})
    assert addresses(plain, "train") == addresses(among, "train")
    assert not set(addresses(plain, "evaluate-held-out")) & set(addresses(among, "evaluate-held-out"))
    pq.write_table(read_sample("train").slice(0, 19), names)
    changed = load(tmp_path, evaluate={"held-out": {"names_from": [str(names)]}})
    assert addresses(changed, "evaluate-held-out") != addresses(among, "evaluate-held-out")


def test_overrides_change_the_sweep_or_the_run_of_every_arm(tmp_path: Path) -> None:
    sweep = load(tmp_path, "seeds=[5]", "training.num_steps=7", "evaluate.held-out.tasks={ways: [5], num_tasks: 3}")
    assert [run.seed for run in sweep.runs] == [5, 5]
    assert {run.config.training.num_steps for run in sweep.runs} == {7}
    assert sweep.config.evaluate["held-out"].tasks is not None
    own = {"hyperclip": {"set": {"training.num_steps": 9}}, "other": {}}
    sweep = load(tmp_path, "training.num_steps=7", arms=own, compare=[])
    assert [run.config.training.num_steps for run in sweep.runs[:2]] == [9, 7]  # what an arm is about stays


def test_an_arm_alone_is_what_would_be_deployed(tmp_path: Path) -> None:
    pairs = load(tmp_path).pairs
    assert pairs[0] == (Contender("hyperclip", "specialized"), Contender("twin", "neutral"))
    assert pairs[1] == (Contender("hyperclip", "specialized"), Contender("hyperclip", "swapped"))


def test_arms_come_after_those_they_start_from(tmp_path: Path) -> None:
    sweep = load(tmp_path)
    arms = {name: {"after": after} for name, after in (("c", "b"), ("a", None), ("b", "a"))}
    assert sweep.config.rebuilt(arms=arms).arms_in_order() == ["a", "b", "c"]


def test_an_arm_starts_from_the_model_that_another_trained_with_the_same_seed(tmp_path: Path) -> None:
    arms = {"hyperclip": {"after": "twin"}, "twin": {"set": {"training.model": "siglip_quickstart"}}}
    sweep = load(tmp_path, arms=arms)  # nothing is trained yet
    twins, others = addresses(sweep, "train")[::2], addresses(sweep, "train")[1::2]
    assert [run.arm for run in sweep.runs] == ["twin", "hyperclip"] * 2
    assert [run.config.training.init_from for run in sweep.runs[1::2]] == [f"{uri}/bundle" for uri in twins]
    moved = load(tmp_path, f"workspace={tmp_path}/elsewhere", arms=arms)
    assert [uri.rpartition("/")[2] for uri in addresses(moved, "train")[1::2]] == [uri.rpartition("/")[2] for uri in others]
    arms["twin"]["set"]["training.optimizer.learning_rate"] = 1.0e-4
    changed = load(tmp_path, arms=arms)  # of another model something else comes
    assert not set(addresses(changed, "train")) & {*twins, *others}


def test_an_arm_learns_from_the_model_that_another_trained_with_the_same_seed(tmp_path: Path) -> None:
    arms = {
        "student": {"teacher": "large", "after": "twin", "set": {"training.distillation.weight": 2}},
        "large": {},
        "twin": {"set": {"training.model": "siglip_quickstart"}},
    }
    sweep = load(tmp_path, arms=arms, compare=[])  # nothing is trained yet
    large, twin, student = (addresses(sweep, "train")[place::3] for place in range(3))
    assert [run.arm for run in sweep.runs] == ["large", "twin", "student"] * 2
    for run, start, teacher in zip(sweep.runs[2::3], twin, large, strict=True):
        assert run.config.training.init_from == f"{start}/bundle"
        assert run.config.training.distillation is not None and run.config.training.distillation.weight == 2
        assert run.config.training.distillation.teacher == f"{teacher}/bundle"
    moved = load(tmp_path, f"workspace={tmp_path}/elsewhere", arms=arms, compare=[])
    assert [Path(uri).name for uri in addresses(moved, "train")[2::3]] == [Path(uri).name for uri in student]
    arms["large"] = {"set": {"training.optimizer.learning_rate": 1.0e-4}}
    changed = load(tmp_path, arms=arms, compare=[])  # who has another teacher learns something else
    assert not set(addresses(changed, "train")[2::3]) & set(student)


def test_a_teacher_that_reads_other_pictures_is_refused_before_it_is_trained(tmp_path: Path) -> None:
    arms = {"student": {"teacher": "large"}, "large": {"set": {"training.model": "siglip_b0"}}}
    with pytest.raises(BadInputError, match=r"arms.student.teacher: 'large' reads pictures of 224 px, 'student' of 48 px"):
        load(tmp_path, arms=arms, compare=[])


def test_every_problem_is_listed_at_once(tmp_path: Path) -> None:
    with pytest.raises(BadInputError) as caught:
        load(
            tmp_path,
            seeds=[0, 1, 0],
            arms={
                "a": {"set": {"training.num_stepz": 3, "training.seed": 1}},
                "b": {"after": "nobody"},
                "c": {"after": "d"},
                "d": {"after": "c"},
                "e": {"teacher": "nobody"},
                "f": {"after": "c", "teacher": "g", "set": {"training.distillation.teacher": "mine"}},
                "g": {"after": "f"},
                "twin": {"set": {"training.model": "siglip_quickstart", "evaluation.num_tasks": 3}},
            },
            compare=[["a", "absent"], ["a", "a.upside_down"], ["a", "a"], ["a", "twin.swapped"]],
        )
    message = str(caught.value)
    for expected in (
        "seeds: 0 is there 2 times",
        "arms.b.after: there is no arm 'nobody'; arms: a, b, c, d, e, f, g, twin",
        "arms.e.teacher: there is no arm 'nobody'; arms: a, b, c, d, e, f, g, twin",
        "arms: c after d after c: none of them can be the first",
        "arms: f after g after f: none of them can be the first",
        "arm f: set.training.distillation.teacher: it follows from `teacher`",
        "compare.0: there is no arm 'absent'",
        "compare.1: there is no reading 'upside_down'",
        "compare.2: 'a' is compared with itself",
        "arm a: training.num_stepz: there is no such setting; did you mean num_steps?",
        "arm a: set.training.seed: that is what `seeds` is for",
        "arm twin: set.evaluation.num_tasks: arms differ in training.* and datasets.train.* only",
    ):
        assert f"  {expected}" in message
    assert message.count("arms: c after d") == 1 and "d after c after d" not in message
    assert not (tmp_path / "work").exists()


def test_a_problem_of_all_arms_is_said_once(tmp_path: Path) -> None:
    with pytest.raises(BadInputError) as caught:
        load(tmp_path, "training.num_steps=0")
    assert str(caught.value).endswith("has 1 problem(s):\n  training.num_steps: Input should be greater than 0 (got 0)")


def test_a_reading_that_a_model_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="siglip_quickstart generates nothing, so 'twin' has no reading 'swapped'"):
        load(tmp_path, compare=[["hyperclip", "twin.swapped"]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {}}, "arms: "),
        ({"arms": {"Big.Name": {}}}, "arms.Big.Name"),
        ({"sedes": [1]}, "sedes: there is no such setting; did you mean seeds?"),
        ({"base": "nowhere.yaml"}, "nowhere.yaml does not exist"),
        ({"set": {"name": "other"}}, "set.name: it follows from the sweep"),
    ],
)
def test_a_bad_sweep_file_ends_with_status_two(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError) as caught:
        load(tmp_path, **changes)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_the_plan_shows_every_run_and_changes_nothing(tmp_path: Path) -> None:
    sweep = load(tmp_path)
    result = CliRunner().invoke(app, ["sweep", "--plan", str(tmp_path / "sweep.yaml")])
    assert result.exit_code == 0, result.output
    assert all(f"to do  {run.title}\n" in result.output and run.uri("train") in result.output for run in sweep.runs)
    assert "0 of 4 runs done" in result.output
    assert not (tmp_path / "work").exists()


def test_cleaning_a_workspace_removes_what_sweeps_made(tmp_path: Path) -> None:
    sweep = load(tmp_path)
    made = {*addresses(sweep, "evaluate-held-out"), *addresses(sweep, "train"), *addresses(sweep, "shard-train")}
    for uri in (*made, sweep.folder_uri, f"{sweep.common.workspace_uri}/my-own-folder"):
        Path(uri).mkdir(parents=True)
    assert {*made_by_any(sweep.common.workspace_uri)} == {*made, f"{sweep.common.workspace_uri}/sweeps"}
