"""A mutation of a deployment file. The other modules list them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """A change that breaks a file, and the test that has to detect it.

    `original` occurs exactly once in the file.
    """

    file: str
    original: str
    replacement: str
    test: str
    """`module::test`, with the module as a path in tests/infra.

    In a parametrized test, one failing case is enough.
    """

    @property
    def node(self) -> str:
        module, _, name = self.test.partition("::")
        return f"tests/infra/{module}.py::{name}"

    def __str__(self) -> str:
        return f"{self.file}-{self.test.partition('::')[2]}"
