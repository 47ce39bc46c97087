"""HTTP: routes by noun, request schemas, server-sent events. The contract is TGI's."""
