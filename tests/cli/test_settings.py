"""Settings of merge methods, checked before anything expensive."""

from __future__ import annotations

import pytest

from evomerge.cli import main


@pytest.mark.parametrize(
    ("space", "override", "words"),
    [
        ("ties", "space.fixed.election=papers", "fixed.election is 'papers'; expected weighted"),
        ("ties", "space.fixed.normalize=maybe", "fixed.normalize: expected true or false"),
        ("ties", "space.fixed.normalize=off", "fixed.normalize: expected true or false"),
        ("ties", "space.fixed.rescale=l2", "fixed.rescale is 'l2'"),
        ("dare_ties", "space.fixed.seed=1.5", "fixed.seed: expected an integer, got 1.5"),
        ("tsv", "space.fixed.rank_fraction=2", "fixed.rank_fraction: expected a share"),
        ("tsv", "space.fixed.rank_fraction=many", "fixed.rank_fraction: expected a number"),
        ("tsv", "space.fixed.rank_fraction=.nan", "fixed.rank_fraction: expected a number"),
        ("pcb", "space.fixed.ratio=high", "fixed.ratio: expected a number, got 'high'"),
        ("ties", "space.parameters.density.high=3", "expected values from 0 to 1"),
        ("ties", "space.parameters.density.low=-1", "got -1"),
        ("sce", "space.parameters.select_topk.high=2", "expected values from 0 to 1"),
    ],
)
def test_what_makes_no_sense_is_refused(
    space: str, override: str, words: str, project, capsys
) -> None:
    name, _, value = override.partition("=")
    assert main(["search", "mine.yaml", f"search_space={space}", f"++{name}={value}"]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert "Traceback" not in err


def test_a_recipe_with_a_density_beyond_one_is_refused(project, capsys) -> None:
    from pathlib import Path

    arguments = ["search", "mine.yaml", "search_space=ties", "n_trials=1", "run_dir=run"]
    assert main(arguments) == 0
    assert main(["export", "run", "--pick", "trial=5", "--out", "out"]) == 0
    text = Path("out/recipe.yaml").read_text()
    _, _, tail = text.partition('"density":\n')
    row = tail.splitlines()[0]
    Path("odd.yaml").write_text(text.replace(row, "  - [3.0, 0.5]"))
    capsys.readouterr()
    assert main(["merge", "odd.yaml", "--out", "never"]) == 2
    assert "expected values from 0 to 1" in capsys.readouterr().err
    assert not Path("never").exists()
