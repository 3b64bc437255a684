import pytest

# Helpers fail as tests do: with the values that they compared.
pytest.register_assert_rewrite(
    *(f"{__name__}.{folder}" for folder in ("support", "docs", "end_to_end", "http", "infra", "s3"))
)
