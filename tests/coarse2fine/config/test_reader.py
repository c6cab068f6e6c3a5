"""Reading settings: messages for every kind of mistake, and overrides."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

import assignnet
from coarse2fine.config.reader import config_hash, load_config, shipped_config
from coarse2fine.config.schema import AssignConfig, CanvasConfig, Config
from coarse2fine.config.types import shipped_agents
from coarse2fine.errors import ConfigError

# Ten lines whose aliases unfold to ten billion values.
BILLION_LAUGHS = "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 11))


def write(folder: Path, text: str) -> Path:
    path = folder / "settings.yaml"
    path.write_text(text)
    return path


def message_of(path: Path | str | None, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_load_config__several_mistakes__reports_each_with_file_line_and_remedy(tmp_path: Path) -> None:
    """One message lists all problems of a file and of the overrides, in the order of their lines."""
    path = write(
        tmp_path,
        """\
mode: acelerated
rois:
  treshold: 0.5
  threshold: 1.5
  min_edge: "4"
  nmm_recrop: [1, 2, 3]
canvas:
  size: [24, 256]
  capacity: true
  tile_step: 0.5
fine:
  folds: 0
""",
    )
    lines = message_of(path, ("rois.margin=[0, 0, -1]",)).splitlines()
    expected = [
        (f'{path}:1: mode: found "acelerated"; expected accelerated or two-stage or one-stage'),
        (f"{path}:3: unknown key 'rois.treshold'; did you mean 'threshold'? Keys of 'rois': threshold, heatmap_voxel"),
        (f"{path}:4: rois.threshold: found 1.5; expected a number from 0 to below 1"),
        (f'{path}:5: rois.min_edge: found "4"; expected a number, 0 or more'),
        (f"{path}:6: unknown key 'rois.nmm_recrop'; it is called 'rois.window' here."),
        (f"{path}:8: canvas.size: found [24, 256]; expected three whole numbers above 0, as [z, y, x], or null"),
        (f"{path}:9: canvas.capacity: found true; expected a whole number above 0, or auto"),
        (f"{path}:10: unknown key 'canvas.tile_step'; did you mean 'coarse.tile_step' or 'fine.tile_step'?"),
        (f"{path}:12: fine.folds: found 0; expected a list such as [0, 1, 2] or [all], or null"),
        ("--set rois.margin=[0, 0, -1]: rois.margin: found [0, 0, -1]; expected three whole numbers, 0 or more"),
        (f"  {Path(__file__).parents[3] / 'configs/README.md'} lists every key"),
    ]
    assert len(lines) == len(expected)
    for line, start in zip(lines, expected, strict=True):
        assert line.startswith(start)


def test_load_config__duplicate_key__names_both_lines(tmp_path: Path) -> None:
    """A key that is given twice is refused, and both places are named."""
    path = write(tmp_path, "rois:\n  threshold: 0.1\n  min_edge: 2\n  threshold: 0.2\n")
    assert f"{path}:4: rois.threshold: duplicate key, first given at {path}:2" in message_of(path)


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!!python/object/new:os.system", "!anything"])
def test_load_config__tag_in_file_or_override__runs_nothing_and_is_refused(tmp_path: Path, tag: str) -> None:
    """Tags that make other YAML loaders run code are an error and nothing more."""
    marker = tmp_path / "it-ran"
    attack = f"{tag} ['touch {marker}']"
    path = write(tmp_path, f"rois:\n  empty: {attack}\n")
    assert f"{path}:2: rois.empty: tag" in message_of(path)
    assert "refused" in message_of(None, (f"rois.empty={attack}",))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("rois:\n  window: [1, 2\n  threshold: 0.3\n", 3, "not valid YAML"),
        ("mode: one-stage\n\tdevice: cpu\n", 2, "not valid YAML"),
        ("- rois\n- canvas\n", 1, "expected sections"),
        ("rois: 3\n", 1, "expected a section with the keys threshold"),
        ("[" * 500, 1, "not valid YAML"),
        (BILLION_LAUGHS, 1, "too many values"),
        ("rois: &a\n  window: *a\n", 1, "nested too deeply"),
        ("rois:\n  margin: [1e400, 0, 0]\n", 2, "rois.margin"),
        ("? [1, 2]\n: 3\n", 1, "a key must be a word"),
        ("assign:\n  lambda: 0.1\n  weight: 0.1\n", 3, "'weight' and 'lambda' are the same key"),
        ("assign:\n  agent: greedy\n  rule: greedy\n", 3, "'rule' and 'agent' are the same key"),
        (
            "assign:\n  agent: greddy\n",
            2,
            "assign.agent: no rule, agent or folder named 'greddy'; did you mean 'greedy'?",
        ),
        ("assign:\n  rule: 3\n", 2, "assign.rule: found 3; expected the name of a rule or agent, or the path"),
    ],
)
def test_load_config__malformed_file__says_what_and_where(tmp_path: Path, text: str, line: int, says: str) -> None:
    """Text that is no configuration ends in a message with its line, never in another exception or an endless loop."""
    path = write(tmp_path, text)
    message = message_of(path)
    assert message.startswith(f"{path}:{line}: ")
    assert says in message


def test_load_config__unreadable_file__is_refused_before_parsing(tmp_path: Path) -> None:
    """Huge files and files that are not text are refused by name."""
    path = write(tmp_path, "# a comment\n" * 10_000)
    assert "larger than" in message_of(path)
    path.write_bytes(b"mode: \xff\xfe")
    assert "not UTF-8" in message_of(path)


@pytest.mark.parametrize("text", ["", "# nothing here\n", "rois:\n  # threshold: 0.5\nfine:\n", "{}\n"])
def test_load_config__nothing_set__gives_the_defaults(tmp_path: Path, text: str) -> None:
    """An empty file, and a section whose keys are all commented out, mean the defaults."""
    assert load_config(write(tmp_path, text)) == load_config(None) == Config()


def test_load_config__missing_file__lists_the_shipped_ones(tmp_path: Path) -> None:
    """A path or name that leads nowhere is answered with the names that do."""
    for path in (tmp_path / "covd.yaml", "covd"):
        message = message_of(path)
        assert "Did you mean 'covid'? Shipped configurations: covid, cremi, demo, fafb, word" in message
    with pytest.raises(ConfigError, match="no configuration named"):
        shipped_config("../configs/covid")


def test_load_config__own_file_named_as_a_shipped_one__is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that exists goes before a shipped one of its name; a folder does not."""
    monkeypatch.chdir(tmp_path)
    Path("covid").write_text("rois:\n  threshold: 0.25\n")
    Path("word").mkdir()
    assert load_config("covid").rois.threshold == 0.25
    assert load_config("word").rois.threshold == 0.9


@pytest.mark.parametrize(
    ("override", "section", "attribute", "value"),
    [
        ("rois.threshold=0.001", "rois", "threshold", 0.001),
        ("rois.min_edge=4", "rois", "min_edge", 4.0),
        ("canvas.slot=[12, 64, 64]", "canvas", "slot", (12, 64, 64)),
        ("canvas.capacity=4", "canvas", "capacity", 4),
        ("canvas.capacity=auto", "canvas", "capacity", "auto"),
        ("canvas.size=null", "canvas", "size", None),
        ("canvas.size=", "canvas", "size", None),
        ("fine.mirroring=off", "fine", "mirroring", False),
        ("fine.folds=[0, all]", "fine", "folds", (0, "all")),
        ("assign.lambda=0.5", "assign", "weight", 0.5),
        ("assign.weight=0.5", "assign", "weight", 0.5),
        ("assign.agent=all_parents", "assign", "agent", "all_parents"),
        ("assign.rule=all_children", "assign", "agent", "all_children"),
        ("assign.budget=2.5", "assign", "budget", 2.5),
        ("assign.budget=null", "assign", "budget", None),
        ("coarse.body_crop=null", "coarse", "body_crop", None),
        (" rois.empty =one-stage", "rois", "empty", "one-stage"),
    ],
)
def test_load_config__override__wins_over_the_file(override: str, section: str, attribute: str, value: object) -> None:
    """An override replaces one value of a file and nothing else."""
    config = load_config("covid", ["canvas.capacity=2", "fine.crop_threshold=[12, 64, 64]", override])
    assert getattr(getattr(config, section), attribute) == value
    assert config.rois.window == (56, 96, 96)


def test_load_config__override_inside_an_absent_section__creates_it() -> None:
    """A nested key can be set although the file and the defaults leave its section out."""
    body_crop = load_config(None, ["coarse.body_crop.above=-300"]).coarse.body_crop
    assert body_crop is not None
    assert (body_crop.above, body_crop.margin_mm) == (-300.0, 10.0)
    assert load_config(None, ["coarse.body_crop={}"]).coarse.body_crop is not None


def test_load_config__override_of_a_wrong_value__makes_the_file_valid(tmp_path: Path) -> None:
    """What a file got wrong does not matter once it is overridden."""
    path = write(tmp_path, "rois:\n  threshold: high\n")
    assert load_config(path, ["rois.threshold=0.5"]).rois.threshold == 0.5


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("rois.threshold", "expected key=value"),
        ("=0.3", "expected key=value"),
        ("rois.threshold=", "rois.threshold: found null; expected a number from 0 to below 1"),
        ("rois.treshold=0.3", "unknown key 'rois.treshold'; did you mean 'threshold'?"),
        ("roi.threshold=0.3", "unknown key 'roi'; did you mean 'rois'?"),
        ("rois.threshold.low=0.3", "'rois.threshold' is a single value"),
        ("rois..threshold=0.3", "unknown key 'rois.'"),
        ("canvas.slot=[1, 2", "not valid YAML"),
        ("canvas={slot: [1, 2, 3]}", "'canvas' is a section; set one of its keys: enabled"),
        ("device=cuda:first", 'device: found "cuda:first"; expected auto, cpu, cuda, cuda:N or mps'),
        ("fine.checkpoint=../x.pth", "expected the name of a file, without folders"),
        ("fine.model=''", "expected the path of a folder"),
        ("fine.folds=[]", "expected a list such as"),
        ("coarse.foreground=liver", 'coarse.foreground: found "liver"; expected a list of label names, such as [liver'),
        ("coarse.foreground=[1, 2]", "coarse.foreground: found [1, 2]; expected a list of label names"),
        ("coarse.foreground=[a, [b]]", 'coarse.foreground: found ["a", ["b"]]; expected a list of label names'),
        ("coarse.forground=[a]", "unknown key 'coarse.forground'; did you mean 'foreground'?"),
        ("coarse.spacing=[40, 20, .nan]", "expected three numbers above 0"),
        ("assign.agent=", "assign.agent: found null; expected the name of a rule or agent"),
        ("assign.agent=''", "assign.agent: no rule, agent or folder named ''"),
        ("assign.agent=top", "Rules: all_parents, all_children, greedy"),
        ("assign.budget=-1", "expected a number, 0 or more, or null"),
        ("assign.features=both", "expected none or coarse or fine"),
    ],
)
def test_load_config__wrong_override__is_named_with_the_remedy(override: str, says: str) -> None:
    """A mistake in an override quotes the override and says what would be right."""
    message = message_of("cremi", (override,))
    assert message.startswith(f"--set {override}: ")
    assert says in message


def test_load_config__model_paths__are_relative_to_where_they_were_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file's model lies beside the file, an override's beside the user, and ~ is the home folder."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = write(tmp_path, "coarse:\n  model: models/low\nfine:\n  model: ~/models/full\n")
    config = load_config(path)
    assert config.coarse.model == tmp_path / "models/low"
    assert config.fine.model == tmp_path / "home/models/full"

    config = load_config(path, ["coarse.model=mine", "fine.model=~/mine"])
    assert config.coarse.model == tmp_path / "elsewhere/mine"
    assert config.fine.model == tmp_path / "home/mine"


def test_load_config__agent_folders__are_relative_to_where_they_were_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of rules stay names; anything with a slash, and any folder that is there, is a path."""
    (tmp_path / "elsewhere" / "there").mkdir(parents=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "greedy").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for text, expected in (
        ("mine", "mine"),
        ("not/yet", "not/yet"),
        ("~/agent", "home/agent"),
        (str(tmp_path / "full"), "full"),
    ):
        config = load_config(write(tmp_path, f"assign:\n  agent: {text}\n"))
        assert config.assign.agent == str(tmp_path / expected)
        assert load_config(write(tmp_path, json.dumps(config.to_dict()))) == config
    path = write(tmp_path, "assign:\n  agent: greedy\n")
    assert load_config(path).assign.agent == "greedy"
    assert load_config(path, ["assign.agent=there"]).assign.agent == str(tmp_path / "elsewhere" / "there")
    assert load_config(path, ["assign.rule=./new"]).assign.agent == str(tmp_path / "elsewhere" / "new")
    assert load_config(path, ["assign.agent=~/new"]).assign.agent == str(tmp_path / "home" / "new")
    assert "no rule, agent or folder named 'there'" in message_of(write(tmp_path, "assign: {agent: there}\n"))
    assert AssignConfig(agent="there").agent == str(tmp_path / "elsewhere" / "there")
    assert AssignConfig(rule="all_parents").agent == "all_parents"  # type: ignore[call-arg]


def test_load_config__shipped_agent__is_known_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Agents in the package's folder go by their names, and are offered where a name is unknown."""
    package = tmp_path / "package"
    (package / "agents" / "lesions").mkdir(parents=True)
    (package / "agents" / "lesions" / "agent.json").touch()
    (package / "agents" / "unfinished").mkdir()
    monkeypatch.setattr(assignnet, "__file__", str(package / "__init__.py"))
    assert shipped_agents() == {"lesions": package / "agents" / "lesions"}
    assert load_config(None, ["assign.agent=lesions"]).assign.agent == "lesions"
    message = message_of(None, ("assign.agent=lesion",))
    assert "did you mean 'lesions'?" in message
    assert "agents: lesions; or name the folder of an agent" in message
    assert "no rule" in message_of(None, ("assign.agent=unfinished",))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["assign.lambda=0", "assign.drop=true"], "assign.drop: needs a lambda above 0"),
        (["canvas.size=[24, 256, 256]", "canvas.slot=[12, 300, 128]"], "canvas.slot: [12, 300, 128] does not fit"),
        (
            ["canvas.size=[24, 256, 256]", "canvas.capacity=9", "canvas.packing=same_size"],
            "canvas.capacity: 9 is more than the 8 slots",
        ),
        (["canvas.slot=[12, 64, 64]", "canvas.context=[6, 0, 0]"], "canvas.context: [6, 0, 0] on both sides"),
        (
            ["canvas.slot=[64, 64, 64]", "fine.crop_threshold=[64, 74, 74]"],
            "fine.crop_threshold: [64, 74, 74] is larger",
        ),
    ],
)
def test_load_config__values_that_do_not_fit_together__names_the_key_to_change(overrides: list[str], says: str) -> None:
    """Values that are valid alone but contradict each other are refused at the later one of the two."""
    assert message_of(None, tuple(overrides)).startswith(f"--set {overrides[1]}: {says}")


def test_load_config__limits_that_are_just_met__are_valid() -> None:
    """A slot as large as the canvas, as many crops as slots, and same-scale packing beyond them are all allowed."""
    load_config(None, ["canvas.size=[24, 256, 256]", "canvas.capacity=8"])
    load_config(None, ["canvas.size=[24, 256, 256]", "canvas.capacity=9", "canvas.packing=same_scale"])
    load_config(None, ["canvas.size=[64, 64, 64]", "canvas.slot=[64, 64, 64]", "fine.crop_threshold=[64, 64, 64]"])


def test_to_dict__written_as_json__loads_as_the_same_config(tmp_path: Path) -> None:
    """A report's settings, saved as they are, reproduce the run's configuration."""
    config = load_config("covid", ["coarse.model=low", "fine.folds=[0, all]"])
    again = load_config(write(tmp_path, json.dumps(config.to_dict())))
    assert again == config
    assert hash(again) == hash(config)


def test_config_hash__equal_and_different_settings__tells_them_apart(tmp_path: Path) -> None:
    """The fingerprint depends on the settings, not on where or how they were written."""
    config = load_config(write(tmp_path, "assign: {lambda: 1}\nrois: {threshold: 0.3}\n"))
    assert config_hash(config) == config_hash(load_config(None, ["assign.weight=1.0"]))
    assert config_hash(config) != config_hash(load_config(None, ["assign.weight=1.1"]))
    assert re.fullmatch("[0-9a-f]{16}", config_hash(config))


def test_config__built_in_python__is_validated_and_frozen() -> None:
    """Code that builds a configuration gets the same checks as files, and nobody can change it afterwards."""
    config = Config(canvas=CanvasConfig(size=(24, 256, 256)))
    with pytest.raises(ValidationError, match="frozen"):
        config.canvas.size = None  # type: ignore[misc]
    with pytest.raises(ValidationError, match=r"canvas\.slot"):
        Config(canvas=CanvasConfig(size=(24, 256, 256), slot=(48, 256, 256)))


@pytest.mark.parametrize(
    ("text", "problem"),
    [("seed: 0x" + "f" * 20_000, "too large"), ("a: [" + "1," * 30_000 + "]", "more than 50000")],
    ids=["endless number", "endless file"],
)
def test_load_config__file_that_exhausts__is_refused_in_short(tmp_path: Path, text: str, problem: str) -> None:
    """Neither a number without end nor a file of that kind is worked through or shown."""
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=problem) as caught:
        load_config(file)
    assert len(str(caught.value)) < 500
