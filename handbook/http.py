"""The HTTP reference: a page for each tag of the OpenAPI document, and the problems."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from api import access
from api.app import create_app
from api.config import Settings
from api.problems import CATALOGUE, CONTENT_TYPE
from handbook import schema
from handbook.text import cell, code, fence, fold, shown, table

FOLDER = "reference/http"
_PROBLEMS = "../problems.md"


class Interface:
    """The coordinator's operations, with who may call them. Connects to nothing."""

    def __init__(self) -> None:
        settings = Settings(
            env="dev", database_url="postgresql://nowhere/x", object_store_url="file:///nowhere"
        )
        app = create_app(settings, background=False)
        self.document: dict[str, Any] = app.openapi()
        self.definitions = self.document["components"]["schemas"]
        self.rules = {each.id: each for each in access.operations(app)}
        self.by_tag: dict[str, list[tuple[str, str, dict[str, Any]]]] = defaultdict(list)
        for path, item in self.document["paths"].items():
            for method, operation in item.items():
                self.by_tag[operation["tags"][0]].append((method.upper(), path, operation))

    @property
    def tags(self) -> list[tuple[str, str]]:
        """(name, description), in the document's order; a tag without description at the end."""
        named = {tag["name"]: tag["description"] for tag in self.document["tags"]}
        names = [*(n for n in named if n in self.by_tag), *sorted(set(self.by_tag) - set(named))]
        return [(name, named.get(name, "")) for name in names]

    def pages(self) -> dict[str, str]:
        """By file name below ``docs``."""
        made = {f"{FOLDER}/{name}.md": self._page(name, text) for name, text in self.tags}
        return {
            f"{FOLDER}/index.md": self._index(),
            **made,
            "reference/problems.md": self._problems(),
        }

    # --- pages ---

    def _index(self) -> str:
        about = (
            "# HTTP\n\nMade of the coordinator's OpenAPI document, which it serves as "
            "`/openapi.json`; to try requests go to `/docs` and `/redoc` of every "
            "coordinator. [The interface in short](../../api.md) says what is common to all, "
            "[who may do what](../../access.md) who is let in, and [Problems](../problems.md) what "
            "can go wrong.\n"
        )
        parts = [about]
        for name, text in self.tags:
            rows = [
                (
                    code(f"{method} {path}"),
                    f"[{cell(op['summary'])}]({name}.md#{op['operationId']})",
                )
                for method, path, op in self.by_tag[name]
            ]
            parts += [f"## {name.capitalize()}\n", f"{text}\n", table(("request", ""), rows)]
        return "\n".join(parts)

    def _page(self, tag: str, text: str) -> str:
        parts = [f"# {tag.capitalize()}\n", f"{text}\n"]
        for method, path, operation in self.by_tag[tag]:
            parts.append(self._operation(method, path, operation))
        return "\n".join(parts)

    def _operation(self, method: str, path: str, operation: dict[str, Any]) -> str:
        name = operation["operationId"]
        rule = self.rules[name]
        scopes = "nobody needs a token" if rule.scopes is None else ", ".join(sorted(rule.scopes))
        parts = [
            f"## {operation['summary']} {{#{name}}}\n",
            fence("http", f"{method} {path}"),
            f"{operation['description']}\n",
            f"**Who**: {scopes}. **Which objects**: {rule.rule}. `{name}`\n",
            self._parameters(operation.get("parameters", [])),
            self._body(operation.get("requestBody", {}).get("content", {})),
            self._answers(operation["responses"]),
        ]
        return "\n".join(part for part in parts if part)

    def _parameters(self, parameters: list[dict[str, Any]]) -> str:
        rows = [
            (
                code(each["name"]),
                each["in"],
                schema.described(each["schema"]),
                schema.default(each["schema"], required=each.get("required", False)),
                cell(each.get("description", "")),
            )
            for each in parameters
        ]
        return table(("parameter", "in", "type", "default", ""), rows)

    def _body(self, content: dict[str, Any]) -> str:
        parts = []
        for media, body in content.items():
            shape = schema.resolved(body.get("schema", {}), self.definitions)
            rows = schema.fields(shape)
            parts.append(f"Body: `{media}`\n")
            parts.append(table(("field", "type", "default", ""), rows))
            examples = [e["value"] for e in body.get("examples", {}).values()]
            examples += [body["example"]] if "example" in body else []
            parts += [fold("A request", _example(media, example)) for example in examples]
        return "\n".join(part for part in parts if part)

    def _answers(self, responses: dict[str, Any]) -> str:
        rows, folds = [], []
        for status, answer in responses.items():
            content = answer.get("content", {})
            codes = content.get(CONTENT_TYPE, {}).get("examples", {})
            if codes:
                said = ", ".join(f"[`{each}`]({_PROBLEMS}#{each})" for each in codes)
            else:
                said = cell(answer["description"])
                folds += [
                    fold(f"Answer {status}: {media}", _example(media, body["example"]))
                    for media, body in content.items()
                    if "example" in body
                ]
            rows.append((status, said))
        return "\n".join([table(("answer", ""), rows), *folds])

    def _problems(self) -> str:
        where: dict[str, list[str]] = defaultdict(list)
        for tag, operations in self.by_tag.items():
            for _, _, operation in operations:
                for answer in operation["responses"].values():
                    for each in answer.get("content", {}).get(CONTENT_TYPE, {}).get("examples", {}):
                        where[each].append(
                            f"[{operation['operationId']}](http/{tag}.md#{operation['operationId']})"
                        )
        about = (
            "# Problems\n\nAn answer that is no success is `application/problem+json` (RFC 9457), "
            "made of one catalogue. Branch on `code`: its meaning never changes. "
            "`detail` says what happened this time, `field` where, and `mend` what to do.\n"
        )
        parts = [about]
        for each, (status, title) in CATALOGUE.items():
            found = list(dict.fromkeys(where[each]))
            few = 0 < len(found) < len(self.rules) / 2
            said = ", ".join(found) if few else "Nearly every operation."
            parts.append(f"## `{each}` {{#{each}}}\n\n**{status}** · {title}.\n\n{said}\n")
        return "\n".join(parts)


def _example(media: str, value: Any) -> str:
    if media.endswith("json") and not isinstance(value, str):
        return fence("json", shown(value))
    return fence("text", value if isinstance(value, str) else shown(value))
