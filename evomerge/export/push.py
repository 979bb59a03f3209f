"""An export -> the hub. Nothing is sent anywhere unless a user asks for it."""

from __future__ import annotations

from pathlib import Path

from evomerge.card import published
from evomerge.errors import ConfigError, ExportError
from evomerge.mergekit import to_mergekit
from evomerge.recipe import Recipe


def push(folder: Path, repo_id: str, *, public: bool = False) -> str:
    """Uploads an export to the hub, in one commit.

    ``recipe.yaml`` and ``mergekit.yaml`` go there with the names of local folders only; on disk
    they keep their absolute paths, which make them work from anywhere.

    Args:
        folder: An export.
        repo_id: ``USER/NAME``; made where it does not exist.
        public: Whether a new repository is public.

    Returns:
        Where it is.

    Raises:
        ConfigError: No such id can be.
        ExportError: The folder is no export, or the hub refused.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    if repo_id.count("/") != 1:
        raise ConfigError(f"--push: expected USER/NAME, got {repo_id!r}.")
    try:
        texts = _texts(folder)
        files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    except OSError as e:
        raise ExportError(f"{folder} is no export: {e.strerror}: {e.filename}.") from e
    operations = [
        CommitOperationAdd(name, texts.get(name, str(path)))
        for path in files
        for name in [path.relative_to(folder).as_posix()]
    ]
    api = HfApi()
    try:
        url = str(api.create_repo(repo_id, private=not public, exist_ok=True))
        api.create_commit(repo_id, operations, commit_message="Upload a merge by evomerge")
    except HFValidationError as e:
        raise ConfigError(f"--push: {e}") from e
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError) as e:
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise ExportError(
            f"{folder} is written, but could not be uploaded to {repo_id} ({reason}). Log in with "
            "`hf auth login`, check the name and the network, and give the same command again: "
            "what is there already is not sent twice."
        ) from e
    return url


def _texts(folder: Path) -> dict[str, bytes]:
    """The files that name folders of this machine, without them."""
    recipe = published(Recipe.from_yaml((folder / "recipe.yaml").read_text()))
    texts = {"recipe.yaml": recipe.to_yaml().encode()}
    theirs = folder / "mergekit.yaml"
    if theirs.exists():
        import yaml

        data = yaml.safe_load(theirs.read_text())
        dtype = data.get("out_dtype") or data.get("dtype")
        texts["mergekit.yaml"] = to_mergekit(recipe, dtype).encode()
    return texts
