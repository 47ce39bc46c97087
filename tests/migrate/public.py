"""Starts of TGI that are public, as they are written there.

Those of TGI's repository are of its commit db931fc; the others are from memory of what is there.
"""

from __future__ import annotations

from typing import NamedTuple


class Start(NamedTuple):
    """`verdicts` are lines that have to be there: a sign of `tgi-async migrate`, and what it is of.

    `name` is the file that `text` is the content of; a text without one is a command.
    """

    source: str
    text: str
    starts: bool
    verdicts: tuple[str, ...]
    name: str = ""


README = "https://github.com/huggingface/text-generation-inference/blob/main/README.md"
DOCS = "https://huggingface.co/docs/text-generation-inference"
IMAGE = "ghcr.io/huggingface/text-generation-inference"

STARTS = [
    Start(
        README,
        """docker run --gpus all --shm-size 1g -p 8080:80 -v $volume:/data \\
    ghcr.io/huggingface/text-generation-inference:3.3.5 --model-id $model""",
        True,
        ("= --gpus all", "= -p 8080:80", f"~ {IMAGE}:3.3.5", "= --model-id $model"),
    ),
    Start(
        f"{README}#using-a-private-or-gated-model",
        """docker run --gpus all --shm-size 1g -e HF_TOKEN=$token -p 8080:80 -v $volume:/data \\
    ghcr.io/huggingface/text-generation-inference:3.3.5 --model-id $model""",
        True,
        ("= HF_TOKEN=$token", "= -v $volume:/data"),
    ),
    Start(
        f"{README}#local-install",
        "text-generation-launcher --model-id mistralai/Mistral-7B-Instruct-v0.2",
        True,
        ("= --model-id mistralai/Mistral-7B-Instruct-v0.2",),
    ),
    Start(
        f"{README}#quantization",
        "text-generation-launcher --model-id mistralai/Mistral-7B-Instruct-v0.2 --quantize",
        False,
        ("! --quantize",),
    ),
    Start(
        f"{DOCS}/installation_amd",
        """docker run --rm -it --cap-add=SYS_PTRACE --security-opt seccomp=unconfined \\
    --device=/dev/kfd --device=/dev/dri --group-add video \\
    --ipc=host --shm-size 256g --net host -v $volume:/data \\
    ghcr.io/huggingface/text-generation-inference:3.3.5-rocm \\
    --model-id $model""",
        False,
        (f"! {IMAGE}:3.3.5-rocm", "- --device /dev/kfd", "= --ipc host"),
    ),
    Start(
        f"{DOCS}/installation_intel, CPUs",
        """docker run --rm --privileged --cap-add=sys_nice \\
    --device=/dev/dri \\
    --ipc=host --shm-size 1g --net host -v $volume:/data \\
    ghcr.io/huggingface/text-generation-inference:3.3.5-intel-cpu \\
    --model-id $model --cuda-graphs 0""",
        True,
        (f"~ {IMAGE}:3.3.5-intel-cpu", "= --privileged"),
    ),
    Start(
        f"{DOCS}/backends/gaudi",
        """docker run -p 8080:80 \\
   --runtime=habana \\
   --cap-add=sys_nice \\
   --ipc=host \\
   -v $volume:/data \\
   ghcr.io/huggingface/text-generation-inference:3.3.5-gaudi \\
   --model-id $model \\
   --max-input-tokens 4096 --max-batch-prefill-tokens 16384 \\
   --max-total-tokens 8192 --max-batch-size 4""",
        False,
        ("! --runtime habana", f"! {IMAGE}:3.3.5-gaudi", "= --max-total-tokens 8192"),
    ),
    Start(
        f"{DOCS}/conceptual/quantization",
        "docker run --gpus all --shm-size 1g -p 8080:80 -v $volume:/data ghcr.io/huggingface/"
        "text-generation-inference:3.3.5 --model-id $model --quantize bitsandbytes-nf4",
        True,
        ("~ --quantize bitsandbytes-nf4",),
    ),
    Start(
        f"{DOCS}/conceptual/quantization, GPTQ from a folder",
        "text-generation-launcher --model-id /data/falcon-40b-gptq/ --sharded true --num-shard 2 "
        "--quantize gptq",
        True,
        ("= --sharded true", "= --num-shard 2", "~ --quantize gptq"),
    ),
    Start(
        f"{DOCS}/basic_tutorials/train_medusa, with its variable set",
        "model=text-generation-inference/gemma-7b-it-medusa docker run --gpus all --shm-size 1g "
        "-p 8080:80 -v $volume:/data ghcr.io/huggingface/text-generation-inference:latest "
        "--model-id text-generation-inference/gemma-7b-it-medusa --speculate 2",
        True,
        ("~ --speculate 2",),
    ),
    Start(
        f"{DOCS}/basic_tutorials/non_core_models",
        "docker run --gpus all --shm-size 1g -p 8080:80 -v $volume:/data "
        "ghcr.io/huggingface/text-generation-inference:latest --model-id <CUSTOM_MODEL_ID> "
        "--trust-remote-code",
        True,
        ("= --trust-remote-code", "= --model-id <CUSTOM_MODEL_ID>"),
    ),
    Start(
        f"{DOCS}/conceptual/lora",
        "text-generation-launcher --model-id mistralai/Mistral-7B-v0.1 "
        "--lora-adapters=predibase/customer_support,predibase/magicoder",
        False,
        ("! --lora-adapters predibase/customer_support,predibase/magicoder",),
    ),
    Start(
        "https://huggingface.co/HuggingFaceH4/zephyr-7b-beta, and model cards like it",
        "docker run --gpus all --shm-size 1g -p 3000:3000 -v $PWD/data:/data "
        "ghcr.io/huggingface/text-generation-inference:1.1.1 --model-id HuggingFaceH4/"
        "zephyr-7b-beta --port 3000 --max-input-length 3696 --max-total-tokens 4096 "
        "--max-batch-prefill-tokens 4096 --quantize awq --max-waiting-tokens 20",
        True,
        (
            "= -p 3000:3000",
            "= --max-input-length 3696",
            "~ --max-batch-prefill-tokens 4096",
            "- --max-waiting-tokens 20",
        ),
    ),
    Start(
        "https://github.com/huggingface/chat-ui, its README's local TGI",
        "docker run --gpus all --shm-size 1g -p 8080:80 -e DISABLE_CUSTOM_KERNELS=true "
        "ghcr.io/huggingface/text-generation-inference:1.4 --model-id "
        "mistralai/Mixtral-8x7B-Instruct-v0.1 --num-shard 4 --cuda-memory-fraction 0.9 "
        "--ngrok false --rope-scaling dynamic --rope-factor 2",
        True,
        ("- DISABLE_CUSTOM_KERNELS=true", "= --ngrok false", "~ --rope-scaling dynamic"),
    ),
    Start(
        "https://github.com/opea-project/GenAIExamples, ChatQnA's compose file for GPUs",
        """services:
  tgi-service:
    image: ghcr.io/huggingface/text-generation-inference:2.4.1
    container_name: tgi-server
    ports:
      - "8008:80"
    volumes:
      - "./data:/data"
    shm_size: 1g
    environment:
      no_proxy: ${no_proxy}
      HF_TOKEN: ${HF_TOKEN}
      HF_HUB_DISABLE_PROGRESS_BARS: 1
      HF_HUB_ENABLE_HF_TRANSFER: 1
    command: --model-id ${LLM_MODEL_ID:-Intel/neural-chat-7b-v3-3} --cuda-graphs 0
  redis:
    image: redis/redis-stack:7.2.0-v9
""",
        True,
        (
            "= port 8008:80",
            "= --model-id Intel/neural-chat-7b-v3-3",
            "- HF_HUB_ENABLE_HF_TRANSFER=1",
        ),
        "compose.yaml",
    ),
    Start(
        f"{DOCS}/basic_tutorials/monitoring, written as a compose file",
        """services:
  tgi:
    image: ghcr.io/huggingface/text-generation-inference:3.3.5
    environment:
      - MODEL_ID=HuggingFaceH4/zephyr-7b-beta
      - NUM_SHARD=2
      - OTLP_ENDPOINT=http://otel:4317
      - PROMETHEUS_PORT=9000
    ports: ["8080:80"]
""",
        True,
        ("= MODEL_ID=HuggingFaceH4/zephyr-7b-beta", "- PROMETHEUS_PORT=9000", "= NUM_SHARD=2"),
        "docker-compose.yml",
    ),
    Start(
        "https://cloud.google.com/kubernetes-engine, serving Gemma with TGI",
        """apiVersion: apps/v1
kind: Deployment
metadata:
  name: tgi-gemma-deployment
spec:
  template:
    spec:
      containers:
      - name: inference-server
        image: us-docker.pkg.dev/deeplearning-platform-release/gcr.io/huggingface-tgi-inference
        resources:
          limits:
            nvidia.com/gpu: 1
        env:
        - name: AIP_HTTP_PORT
          value: '8000'
        - name: HUGGING_FACE_HUB_TOKEN
          valueFrom:
            secretKeyRef: {name: hf-secret, key: hf_api_token}
        args:
        - --model-id=$(MODEL_ID)
        - --num-shard=1
        - --max-concurrent-requests=64
        - --port=8000
        ports:
        - containerPort: 8000
        livenessProbe:
          httpGet: {path: /health, port: 8000}
        readinessProbe:
          httpGet: {path: /health, port: 8000}
""",
        True,
        (
            "~ livenessProbe /health",
            "= readinessProbe /health",
            "= port 8000",
            "= --num-shard 1",
            "= HUGGING_FACE_HUB_TOKEN=$HUGGING_FACE_HUB_TOKEN",
        ),
        "tgi-2b-it.yaml",
    ),
    Start(
        "https://github.com/kserve/kserve, a ServingRuntime of TGI's",
        """apiVersion: serving.kserve.io/v1alpha1
kind: ServingRuntime
metadata:
  name: tgi-runtime
spec:
  containers:
    - name: kserve-container
      image: ghcr.io/huggingface/text-generation-inference:1.0.3
      command: ["text-generation-launcher"]
      args: ["--model-id=/mnt/models/", "--port=3000"]
      env:
        - {name: TRANSFORMERS_CACHE, value: /tmp/transformers_cache}
        - {name: WEIGHTS_CACHE_OVERRIDE, value: /mnt/models}
      ports: [{containerPort: 3000}]
""",
        False,
        ("! WEIGHTS_CACHE_OVERRIDE=/mnt/models", "= --port 3000"),
        "runtime.yaml",
    ),
    Start(
        "https://huggingface.co/docs/inference-endpoints, a custom container by the API",
        """{"model": {"repository": "HuggingFaceH4/zephyr-7b-beta", "image": {"custom": {
    "health_route": "/health",
    "url": "ghcr.io/huggingface/text-generation-inference:2.0.2",
    "env": {"MAX_BATCH_PREFILL_TOKENS": "2048", "MAX_INPUT_LENGTH": "1024",
            "MAX_TOTAL_TOKENS": "1512", "MODEL_ID": "/repository"}}}}}
""",
        True,
        ("= MODEL_ID=/repository", "~ MAX_BATCH_PREFILL_TOKENS=2048", "= health route /health"),
        "endpoint.json",
    ),
    Start(
        "https://github.com/aws/sagemaker-python-sdk, the environment of a HuggingFaceModel",
        "docker run -p 8080:8080 --gpus all -e HF_MODEL_ID=meta-llama/Llama-2-13b-chat-hf "
        "-e SM_NUM_GPUS=4 -e MAX_INPUT_LENGTH=2048 -e MAX_TOTAL_TOKENS=4096 -e PORT=8080 "
        "763104351884.dkr.ecr.us-east-1.amazonaws.com/huggingface-pytorch-tgi-inference:2.4.0 "
        "serve",
        True,
        (
            "~ HF_MODEL_ID=meta-llama/Llama-2-13b-chat-hf",
            "~ SM_NUM_GPUS=4",
            "= MAX_INPUT_LENGTH=2048",
        ),
    ),
    Start(
        "https://huggingface.co/docs/hub/spaces-sdks-docker, a Space that serves a model",
        """FROM ghcr.io/huggingface/text-generation-inference:1.4.0
ENV MODEL_ID=google/gemma-2b-it \\
    MAX_INPUT_LENGTH=4000 MAX_TOTAL_TOKENS=4096
ENV HUGGINGFACE_HUB_CACHE /data
RUN pip install hf_transfer
EXPOSE 7860
CMD ["--port", "7860", "--json-output"]
""",
        True,
        (
            "~ RUN pip install hf_transfer",
            "= --port 7860",
            "= HUGGINGFACE_HUB_CACHE=/data",
            "= MAX_TOTAL_TOKENS=4096",
        ),
        "Dockerfile",
    ),
    Start(
        "https://github.com/huggingface/text-generation-inference/issues, a common mistake",
        "docker run --gpus all -p 8080:8080 ghcr.io/huggingface/text-generation-inference:2.0 "
        "--model-id meta-llama/Meta-Llama-3-8B-Instruct --max-input-tokens 8192 "
        "--max-total-tokens 8192 --max_batch_size 8",
        False,
        (
            "- -p 8080:8080",
            "= --max-total-tokens 8192",
            "! --max_batch_size 8",
            "! --max-input-tokens must be less than --max-total-tokens. Given: 8192 and 8192.",
        ),
    ),
]
