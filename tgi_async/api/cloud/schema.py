"""Bodies of `/vertex` and KServe's routes."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Raw, Struct

from tgi_async.api.generate.schema import GenerateRequest
from tgi_async.api.parameters import GenerateParameters

Byte = Annotated[int, Meta(ge=0, le=255)]


class VertexParameters(GenerateParameters, frozen=True, kw_only=True):
    """The parameters of `/generate`; here a text is sampled by default, as in TGI."""

    do_sample: bool = True


class VertexInstance(Struct, frozen=True):
    """A text to continue."""

    inputs: str
    parameters: VertexParameters | None = None

    @property
    def given(self) -> VertexParameters:
        """The parameters, or the defaults where there are none."""
        return self.parameters or VertexParameters()


_INSTANCES = [
    {"$ref": f"#/components/schemas/{name}"} for name in ("VertexInstance", "ChatRequest")
]


class VertexRequest(Struct, frozen=True):
    """Instances are distinguished by their fields, which a decoder of types cannot do."""

    instances: list[Annotated[Raw, Meta(extra_json_schema={"anyOf": _INSTANCES})]]


class VertexResponse(Struct, frozen=True):
    """The generated texts, in the order of the instances."""

    predictions: list[str]


class InferenceInput(Struct, frozen=True):
    """`data` is a text in UTF-8, byte by byte; `shape` and `datatype` have no effect."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Byte]


class InferenceOutputName(Struct, frozen=True):
    name: str


class InferenceRequest(Struct, frozen=True):
    """A request with as many outputs as inputs: each output names one input's continuation."""

    id: str
    inputs: list[InferenceInput]
    outputs: list[InferenceOutputName]
    parameters: GenerateParameters | None = None

    def generation(self, text: str) -> GenerateRequest:
        """Return the request for one input."""
        return GenerateRequest(text, self.parameters)


class InferenceOutput(Struct, frozen=True):
    """One text; `shape` is its number of bytes."""

    name: str
    shape: list[int]
    datatype: str
    data: list[int]


class InferenceResponse(Struct, frozen=True):
    id: str
    outputs: list[InferenceOutput]


class Metadata(Struct, frozen=True):
    name: str
    version: str
    extensions: list[str]


class Liveness(Struct, frozen=True):
    live: bool


class Readiness(Struct, frozen=True):
    """`live` is TGI's name for KServe's `ready`."""

    live: bool
    ready: bool
