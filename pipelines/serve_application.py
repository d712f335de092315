"""The endpoint as Ray Serve's own tools take it: `import_path: pipelines.serve_application:build` in a Serve config.

`serve deploy` and KubeRay's RayService start and watch it then; on other clusters jobs/serve.py does.
"""

import dataclasses
from typing import Any

from pydantic import TypeAdapter
from ray import serve

from linvt.serving.config import ServeConfig
from pipelines.serve import application


def build(args: dict[str, Any]) -> serve.Application:
    """`args` are fields of ServeConfig; Serve decides about host and port.

    The address being another's to choose, an API key is required unless allow_anonymous is given. Raises ValueError for
    what ServeConfig refuses.
    """
    fields = sorted(field.name for field in dataclasses.fields(ServeConfig))
    if unknown := sorted(set(args) - set(fields)):
        raise ValueError(f"args of the endpoint: unknown fields {unknown}; ServeConfig has {fields}")
    # In YAML, `num_replicas: 2` is a number; MIN:MAX is text.
    num_replicas = str(args.get("num_replicas", ServeConfig.num_replicas))
    asked = {"host": "0.0.0.0", **args, "num_replicas": num_replicas}
    return application(TypeAdapter(ServeConfig).validate_python(asked))
