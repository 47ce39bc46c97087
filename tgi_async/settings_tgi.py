"""TGI's settings besides `Settings`, and what each does here."""

from __future__ import annotations

NOT_BUILT = {
    "lora_adapters": "LoRA adapters",
    "weights_cache_override": "another place of the weights (--model-id may be a folder)",
    "watermark_gamma": "other watermark parameters than 0.5 and 2.0",
    "watermark_delta": "other watermark parameters than 0.5 and 2.0",
}
"""Settings that are known but not supported: setting one is an error. Values describe the
setting."""

HARMLESS = {
    "watermark_gamma": ("0.5",),
    "watermark_delta": ("2", "2.0"),
}
"""Values of these that ask for nothing."""

WITHOUT_MEANING = {
    "waiting_served_ratio": "a request joins the running batch as soon as there is room",
    "max_waiting_tokens": "a request joins the running batch as soon as there is room",
    "disable_custom_kernels": "this server has none of TGI's kernels",
    "enable_prefill_logprobs": "the log-probabilities of a prompt are returned where asked for",
    "prometheus_port": "metrics are at /metrics of the one port",
    "shard_uds_path": "the sockets to the workers are in a folder of their own",
    "ngrok": "this server opens no tunnel",
    "ngrok_authtoken": "this server opens no tunnel",
    "ngrok_edge": "this server opens no tunnel",
    "usage_stats": "this server sends no usage statistics",
    "enable_ssl_refresh": "the certificate is read again whenever its files change",
}
"""Flags that are accepted and do nothing here, each with the reason; the last one is vLLM's."""

OF_SEVERAL_NODES = ("node_rank", "master_addr", "master_port", "cluster_secret_file")
"""Settings that do nothing where the model is on one node, as TGI's always is."""
ONE_NODE = "the model is on this node alone (--nnodes)"

VARIABLES_WITHOUT_MEANING = {
    "PREFIX_CACHING": "the prefix cache is always on and changes no text",
    "PREFILL_CHUNKING": "long prompts are always computed in chunks",
    "TGI_WIGGLE_ROOM": "--kv-cache-memory says how much memory the KV cache may take",
    "HF_HUB_ENABLE_HF_TRANSFER": "weight files are fetched side by side without it",
    "USE_FLASH_ATTENTION": "--attention says how attention is computed",
    "DISABLE_EXLLAMA": "the kernels of exllama are not here",
    "EXLLAMA_VERSION": "the kernels of exllama are not here",
    "XPU_MEMORY_FRACTION": "this server does not run on such a device",
    "ROCM_USE_CUSTOM_PAGED_ATTN": "this server does not run on such a device",
    "ROCM_USE_FLASH_ATTN_V2_TRITON": "this server does not run on such a device",
    "ROCM_USE_SKINNY_GEMM": "this server does not run on such a device",
}
"""Environment variables that TGI reads and that have no flag."""

VALUES_OF_TGI = {
    "attention": dict.fromkeys(
        ("flashinfer", "flashdecoding", "flashdecoding-ipex", "paged"), "auto"
    )
}
"""What values that only TGI knows mean here, by setting."""

NOTHING = ("", "false", "0", "off")
"""Values with which a flag asks for nothing, so that no warning is logged."""

OTHER_NAMES = {
    "model_id": "HF_MODEL_ID",
    "revision": "HF_MODEL_REVISION",
    "trust_remote_code": "HF_MODEL_TRUST_REMOTE_CODE",
    "num_shard": "SM_NUM_GPUS",
    "quantize": "HF_MODEL_QUANTIZE",
}
"""SageMaker's names of environment variables, which count where TGI's own are not set."""

VERTEX_PORT = "AIP_HTTP_PORT"
VERTEX_ROUTES = ("AIP_PREDICT_ROUTE", "AIP_HEALTH_ROUTE")
"""With any of these set, Vertex AI runs the server and says on which port it will ask."""
