"""More starts of TGI that are public: of issues, and of repositories of its users."""

from __future__ import annotations

from tests.migrate.public import IMAGE, Start

ISSUES = "https://github.com/huggingface/text-generation-inference/issues"

FOUND = [
    Start(
        f"{ISSUES}/245",
        f"docker run {IMAGE}  --model-id checkpoint-400 --num-shard 2",
        True,
        ("= --model-id checkpoint-400", "= --num-shard 2"),
    ),
    Start(
        f"{ISSUES}/408",
        f"docker run --gpus all --shm-size 1g -p 8080:80 -v $volume:/data {IMAGE}:0.8.2 "
        "--model-id $model --num-shard $num_shard --env",
        True,
        ("= --num-shard $num_shard", "= --env"),
    ),
    Start(
        f"{ISSUES}/606",
        f"docker run --gpus all --shm-size 1g -p 8090:80 -v $volume:/data {IMAGE}:0.9 "
        "--model-id $model --num-shard $num_shard   --trust-remote-code --quantize bitsandbytes",
        True,
        ("= -p 8090:80", "= --trust-remote-code", "~ --quantize bitsandbytes"),
    ),
    Start(
        f"{ISSUES}/978",
        f"docker run {IMAGE}:1.0.3 --model-id meta-llama/Llama-2-13b-chat-hf --num-shard 4 -it "
        "--gpus all --ipc=host -v /dev/shm:/dev/shm",
        False,
        ("= --num-shard 4", "! -it", "! --gpus all", "! --ipc host", "! -v /dev/shm:/dev/shm"),
    ),
    Start(
        f"{ISSUES}/1655",
        "docker run -d -v /dev/shm:/dev/shm --gpus all -e HUGGING_FACE_HUB_TOKEN=$TOKEN "
        f"-p 8080:80 -v $volume:/data {IMAGE}:latest --model-id $model --quantize awq "
        "--num-shard 4 --max-input-length 4095 --max-total-tokens 4096 "
        "--max-batch-prefill-tokens 4096 --max-batch-total-tokens 4096",
        True,
        ("= -v /dev/shm:/dev/shm", "~ --quantize awq", "= --max-batch-total-tokens 4096"),
    ),
    Start(
        "https://github.com/h2oai/h2ogpt/pull/295",
        "sudo docker run --gpus device=4 --shm-size 2g -e NCCL_SHM_DISBLAE=1 "
        '-e TRANSFORMERS_CACHE="/.cache/" -p 6112:80 -v $HOME/.cache:/.cache/ '
        f"-v $PWD/data:/data {IMAGE}:0.8.2 --model-id h2oai/h2ogpt-oasst1-falcon-40b "
        "--max-input-length 2048 --max-total-tokens 3072 --quantize bitsandbytes --sharded false",
        True,
        ("= --gpus device=4", "= TRANSFORMERS_CACHE=/.cache/", "= --sharded false"),
    ),
    Start(
        "https://github.com/h2oai/h2ogpt, a local install",
        "NCCL_SHM_DISABLE=1 CUDA_VISIBLE_DEVICES=0 text-generation-launcher "
        "--model-id h2oai/h2ogpt-oig-oasst1-512-6_9b --port 8080  --sharded false "
        "--trust-remote-code --max-stop-sequences=6",
        True,
        ("= NCCL_SHM_DISABLE=1", "= CUDA_VISIBLE_DEVICES=0", "= --max-stop-sequences 6"),
    ),
    Start(
        "https://github.com/open-thought/arc-agi-2, arc-1/rejection_baseline/launch_tgi.sh",
        "#/bin/bash\ndocker run --gpus all --shm-size 1g -p 8080:80 "
        f"-v ~/.cache/huggingface/:/data {IMAGE}:3.0.1 "
        "--model-id meta-llama/Llama-3.2-3B-Instruct --num-shard 2 --enable-prefill-logprobs\n",
        True,
        ("= -v ~/.cache/huggingface/:/data", "- --enable-prefill-logprobs"),
        "launch_tgi.sh",
    ),
    Start(
        "https://github.com/nichnikov/train-llm-tutorial, run_llm.bash",
        """%%bash
model=$(pwd)/code-llama-7b-text-to-sql # path to model
num_shard=1             # number of shards

docker run -d --name tgi --gpus all -ti -p 8080:80 \\
  -e MODEL_ID=/workspace \\
  -e NUM_SHARD=$num_shard \\
  -e MAX_INPUT_LENGTH=$max_input_length \\
  -v $model:/workspace \\
  ghcr.io/huggingface/text-generation-inference:latest
""",
        True,
        ("= -ti", "= MODEL_ID=/workspace", "= NUM_SHARD=$num_shard", "= -v $model:/workspace"),
        "run_llm.bash",
    ),
    Start(
        "https://github.com/Dmitriuso/bot-antosha-tgi, run_tgi.sh, where a line end is missing",
        """docker rm -f $container_name

docker run -d --name $container_name --gpus all --shm-size 1g -p 2300:80 \\
  -v $PWD$volume:/data ghcr.io/huggingface/text-generation-inference:1.3.4 \\
  --model-id $model
  --max-stop-sequences 4 \\
  --trust-remote-code \\
  # --quantize eetq \\
""",
        True,
        ("= -v $PWD$volume:/data", "= --model-id $model"),
        "run_tgi.sh",
    ),
    Start(
        "a script that sets a flag by a variable, DeepSeek Coder with TGI 1.4",
        """export QUANTIZE_ARGS="" # No quantization (requires more VRAM)
docker run --gpus all -p ${API_PORT}:80 -v ${HUGGINGFACE_HUB_CACHE}:/data -e HF_HOME=/data \\
    -e HF_HUB_ENABLE_HF_TRANSFER="false" --hostname 0.0.0.0 \\
    ghcr.io/huggingface/text-generation-inference:1.4.0 \\
    --model-id ${MODEL_ID} \\
    ${QUANTIZE_ARGS} \\
    --max-input-length 2048 \\
    --trust-remote-code # IMPORTANT: DeepSeek models often require this flag!
""",
        True,
        ("= ${QUANTIZE_ARGS}", "- HF_HUB_ENABLE_HF_TRANSFER=false", "= --trust-remote-code"),
        "start.sh",
    ),
    Start(
        "a script of a cluster, Llama 2 with SLURM",
        """#!/bin/bash
#SBATCH --gres=gpu:A6000:1
conda activate tgi-env
text-generation-launcher --model-id $model_id --port 1100 --master-port 23456 \\
  --shard-uds-path /scratch/tgi-uds-socket-1 --huggingface-hub-cache /data/tgi_cache/hub \\
  --max-input-length 4000 --max-total-tokens 4096
""",
        True,
        ("= --port 1100", "- --master-port 23456", "= --huggingface-hub-cache /data/tgi_cache/hub"),
        "run.sbatch.sh",
    ),
    Start(
        "a script that names TGI's entrypoint for SageMaker, of a mirror of the image",
        """docker run --entrypoint ./entrypoint.sh \\
        --gpus '"device=0,1"' --shm-size 1g --publish 9123:80 \\
        --volume /shd/models:/models \\
        ghcr.nju.edu.cn/huggingface/text-generation-inference:1.4 \\
        --model-id /models/a
""",
        True,
        ("- --entrypoint ./entrypoint.sh", "= --publish 9123:80", "= --model-id /models/a"),
        "run.sh",
    ),
    Start(
        "a compose file with the model as a variable and as a flag",
        """services:
  openai_gpu:
    image: ghcr.io/huggingface/text-generation-inference:0.9.3
    environment:
      - HUGGING_FACE_HUB_TOKEN=token
      - USE_FLASH_ATTENTION=false
      - MODEL_ID=''
    command: --model-id $MODEL_ID --num-shard $NUM_SHARD
    ports:
      - "8080:80"
    shm_size: 1g
""",
        True,
        ("= --model-id $MODEL_ID", "- USE_FLASH_ATTENTION=false", "= port 8080:80"),
        "compose.yaml",
    ),
    Start(
        "https://github.com/mlsys-io/kv.run, a fork with a flag of its own",
        "text-generation-launcher --model-id TechxGenus/gemma-2b-GPTQ "
        "--lora-ids tjluyao/gemma-2b-it-math --quantize gptq",
        False,
        ("! --lora-ids tjluyao/gemma-2b-it-math", "~ --quantize gptq"),
    ),
]
