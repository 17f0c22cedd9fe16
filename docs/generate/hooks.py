"""What MkDocs does for the site beside rendering docs/: pages and files of the repository that lie outside it.

In the Markdown they are linked as they lie (``../benchmarks/results/faults.json``), so that the links work where the
repository is read too.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changes.md"}
FILES = ("benchmarks/results/*.json", "benchmarks/studies/*.toml", "recipes/*.toml", "CITATION.cff", "LICENSE")
LINK = re.compile(r"(?<=\]\()(?!https?:)([^)\s#]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=LINK.sub(_from_root, text)))
    for pattern in FILES:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    return LINK.sub(_from_docs, markdown)


def _from_root(link: re.Match[str]) -> str:
    """A link from the repository's root, as the site has it."""
    path = link[1]
    return PAGES.get(path, path.removeprefix("docs/"))


def _from_docs(link: re.Match[str]) -> str:
    """A link from docs/, as the site has it."""
    path = link[1]
    return PAGES.get(path.removeprefix("../"), path.removeprefix("../")) if path.startswith("../") else path
