"""Settings: typed, refused early and clearly, and each knows where it came from."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest

from fourplane.foundation import config
from fourplane.foundation.errors import Misconfigured


class Mailbox(msgspec.Struct, frozen=True):
    count_max: Annotated[int, msgspec.Meta(ge=1)] = 1_000


class Messaging(msgspec.Struct, frozen=True):
    domain: str = "localhost"
    port: int = 5222
    idle_s: float = 30.0
    mailbox: Mailbox = Mailbox()
    allowed: tuple[str, ...] = ()

    def __post_init__(self):
        if self.port == 80:
            raise ValueError("port 80 belongs to the web")


class Settings(msgspec.Struct, frozen=True):
    data: Path = Path("./data")
    mode: Literal["quiet", "loud"] = "quiet"
    store: str = "sqlite:"
    operator_password: str = ""
    messaging: Messaging = Messaging()


def load(tmp_path, text="", **environment):
    file = tmp_path / "fourplane.toml"
    file.write_text(text)
    return config.load(Settings, file, environment)


def refusal(tmp_path, text="", **environment):
    with pytest.raises(Misconfigured) as refused:
        load(tmp_path, text, **environment)
    return refused.value.message


def test_without_file_and_environment_the_defaults_stand():
    loaded = config.load(Settings, None, {})
    assert loaded.settings == Settings()
    assert {origin.kind for origin in loaded.origins.values()} == {"default"}


def test_the_environment_wins_over_the_file_and_the_file_over_the_default(tmp_path):
    text = 'mode = "loud"\n\n[messaging]\nport = 1\ndomain = "a.example"\n'
    loaded = load(tmp_path, text, FOURPLANE_MESSAGING__PORT="7", FOURPLANE_DATA="/srv/x", HOME="/")
    assert loaded.settings == Settings(
        data=Path("/srv/x"), mode="loud", messaging=Messaging(port=7, domain="a.example")
    )
    origins = loaded.origins
    assert origins["messaging.port"] == config.Origin("messaging.port", "7", "environment", "FOURPLANE_MESSAGING__PORT")
    assert origins["messaging.domain"] == config.Origin("messaging.domain", '"a.example"', "file", "fourplane.toml:5")
    assert origins["messaging.idle_s"].kind == "default"
    assert origins["data"].kind == "environment"


def test_a_section_inside_a_section_is_reached_both_ways(tmp_path):
    assert load(tmp_path, "[messaging.mailbox]\ncount_max = 5").settings.messaging.mailbox.count_max == 5
    assert load(tmp_path, "", FOURPLANE_MESSAGING__MAILBOX__COUNT_MAX="6").settings.messaging.mailbox.count_max == 6


def test_a_list_of_the_environment_is_written_as_toml(tmp_path):
    assert load(tmp_path, "", FOURPLANE_MESSAGING__ALLOWED='["a", "b"]').settings.messaging.allowed == ("a", "b")


def test_an_unknown_key_is_refused_with_place_and_nearest_name(tmp_path):
    assert refusal(tmp_path, "[messaging]\n\nprot = 5") == (
        'fourplane.toml:3: unknown setting "messaging.prot" (did you mean "messaging.port"?)'
    )
    assert refusal(tmp_path, "[mesaging]\nport = 5") == (
        'fourplane.toml:1: unknown setting "mesaging" (did you mean "messaging"?)'
    )


def test_an_unknown_variable_is_refused_with_the_nearest_name(tmp_path):
    assert refusal(tmp_path, "", FOURPLANE_MESAGING__PORT="5") == (
        'environment: unknown setting FOURPLANE_MESAGING__PORT (did you mean "FOURPLANE_MESSAGING__PORT"?)'
    )


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("messaging.prot", "messaging.port"),
        ("messaging.count_max", "messaging.mailbox.count_max"),
        ("prot", "messaging.port"),
        ("messaging.mailbox.cuont_max", "messaging.mailbox.count_max"),
        ("xyzzy", ""),
    ],
)
def test_the_nearest_key_is_sought_in_its_section_then_in_those_around(wrong, right):
    assert config.nearest_key(wrong, [option.key for option in config.options(Settings)]) == right


def test_a_wrong_type_says_place_value_and_what_was_expected(tmp_path):
    assert refusal(tmp_path, '[messaging]\nport = "5222"') == (
        'fourplane.toml:2: "messaging.port" = "5222": expected int, got str'
    )
    assert refusal(tmp_path, "", FOURPLANE_MESSAGING__PORT="many").startswith(
        'FOURPLANE_MESSAGING__PORT: "messaging.port" = "many": expected int'
    )


def test_every_mistake_is_told_at_once(tmp_path):
    told = refusal(tmp_path, 'mode = "soft"\nx = 1\n[messaging.mailbox]\ncount_max = 0\n').splitlines()
    assert len(told) == 3
    assert any("expected int >= 1" in line for line in told)


def test_what_a_section_forbids_is_said_with_its_name(tmp_path):
    assert refusal(tmp_path, "[messaging]\nport = 80") == "[messaging]: port 80 belongs to the web"


def test_a_value_where_a_section_belongs_is_refused(tmp_path):
    assert refusal(tmp_path, "messaging = 5") == 'fourplane.toml:1: "messaging" is a section, not a value'


def test_broken_toml_is_one_line_with_its_place(tmp_path):
    told = refusal(tmp_path, "[messaging\nport = 5")
    assert told.startswith("fourplane.toml: not valid TOML")
    assert "line 1" in told


def test_bytes_that_are_no_text_are_refused(tmp_path):
    file = tmp_path / "fourplane.toml"
    file.write_bytes(b"mode = \xff\xfe")
    with pytest.raises(Misconfigured, match="not valid TOML"):
        config.load(Settings, file, {})


def test_secrets_are_never_shown(tmp_path):
    loaded = load(tmp_path, 'operator_password = "hunter2"\nstore = "postgres://me:hunter2@db/x"')
    assert "hunter2" not in repr(loaded.origins)
    assert loaded.origins["store"].value == '"postgres://me:***@db/x"'
    assert loaded.settings.operator_password == "hunter2"
    assert "hunter2" not in refusal(tmp_path, "", FOURPLANE_OPERATOR_PASSWORD="hunter2", FOURPLANE_X="hunter2")


def test_an_alias_sets_its_key(tmp_path):
    loaded = config.load(Settings, None, {"FOURPLANE_STORE_URL": "x:"}, aliases={"FOURPLANE_STORE_URL": "store"})
    assert loaded.settings.store == "x:"


def test_the_reference_lists_every_setting_once():
    listed = {option.key: option for option in config.options(Settings)}
    assert listed["messaging.mailbox.count_max"].default == "1000"
    assert listed["mode"].type == "'quiet' or 'loud'"
    assert len(listed) == 9
