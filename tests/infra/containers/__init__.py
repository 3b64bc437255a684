"""The container image, and localstack.yml, in a real container engine (`make docker-test`).

`engine` finds or starts an engine, `stand_ins` replaces base images where no registry can be
reached, and `compose` runs localstack.yml. `test_dockerfile` needs no engine and runs in `make
test`.
"""
