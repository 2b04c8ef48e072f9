"""What `pipeline-engine systemd` would write and do."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline_engine.cli.systemd import InstallError, check_visible, command, exec_start, unit_texts


def test_the_units_start_this_installation(tmp_path: Path) -> None:
    (tmp_path / "pipeline-engine").touch()
    start = exec_start(str(tmp_path / "python"))
    assert start == f'"{tmp_path}/pipeline-engine" "serve"'
    for for_user in (False, True):
        texts = dict(unit_texts(start, for_user=for_user))
        assert set(texts) == {"pipeline-engine.service", "pipeline-engine.socket"}
        assert texts["pipeline-engine.service"].count(f"\nExecStart={start}\n") == 1
        assert "ExecStart=/usr/local" not in texts["pipeline-engine.service"]


def test_without_a_script_the_interpreter_runs_the_module_and_odd_characters_are_kept() -> None:
    assert exec_start("/a b/100%/$x/python") == ('"/a b/100%%/$$x/python" "-P" "-m" "pipeline_engine" "serve"')


@pytest.mark.parametrize("path", ["/root/.venv/bin/python", "/home/me/venv/bin/python", "/run/user/1000/python"])
def test_what_the_service_cannot_see_is_refused(path: str) -> None:
    with pytest.raises(InstallError, match="in a home directory"):
        check_visible([Path("/usr/bin/python3"), Path(path)])


def test_what_it_can_see_is_accepted() -> None:
    check_visible([Path("/usr/bin/python3"), Path("/opt/x/bin/python"), Path("/rooted/python")])


@pytest.mark.parametrize("verb", ["install", "uninstall"])
def test_a_dry_run_changes_nothing(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")  # nor could systemctl be run
    units = tmp_path / "systemd" / "user"
    if verb == "uninstall":
        units.mkdir(parents=True)
        (units / "pipeline-engine.service").touch()
    before = sorted(tmp_path.rglob("*"))
    done = CliRunner().invoke(command, [verb, "--user", "--dry-run"])
    assert done.exit_code == 0, done.output
    assert f"would {'write' if verb == 'install' else 'remove'} {units}/pipeline-engine.service" in done.output
    assert "would run systemctl --user daemon-reload" in done.output
    assert sorted(tmp_path.rglob("*")) == before
