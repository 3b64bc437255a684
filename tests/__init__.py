import pytest

# A failed assert in these modules, which are not test modules, shows the values it compared too.
pytest.register_assert_rewrite(
    *(f"{__name__}.{folder}" for folder in ("support", "docs", "end_to_end", "http", "infra", "s3"))
)
