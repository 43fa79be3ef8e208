# CUDA by default:   docker build -t softserve .
# For a CPU:         docker build -t softserve:cpu --build-arg DEVICE=cpu .
FROM python:3.11-slim-bookworm

ARG DEVICE=cuda

# tcmalloc makes a CPU engine 3 to 20 % faster; vLLM compiles small kernels with gcc on CUDA, and
# g++ compiles the LoRAs' products for a CPU.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends libtcmalloc-minimal4 libnuma1 gcc g++ libc6-dev \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/softserve
COPY pyproject.toml README.md LICENSE ./
COPY requirements requirements
COPY scripts/install.sh scripts/install.sh
COPY app app
COPY softserve softserve
COPY adapters adapters
COPY templates templates

# The very same steps as `make serve`, for whichever CPU the image will run on.
RUN SOFTSERVE_DEVICE=${DEVICE} SOFTSERVE_COMPILE=all scripts/install.sh serve && rm -rf ~/.cache

# The default model and vLLM's caches, and the versions of adapters: mount volumes to keep them.
ENV SOFTSERVE_CACHE_DIR=/var/cache/softserve \
    SOFTSERVE_ADAPTER_DIR=/opt/softserve/adapters \
    SOFTSERVE_TEMPLATE_DIR=/opt/softserve/templates \
    XDG_DATA_HOME=/var/lib \
    SOFTSERVE_HOST=0.0.0.0 \
    HF_HOME=/var/cache/softserve/huggingface
# By number: Kubernetes sees that it is not root, and whose volumes are. deploy/kubernetes knows it.
RUN groupadd --system --gid 999 softserve \
 && useradd --system --uid 999 --gid 999 --create-home softserve \
 && install -d -o softserve -g softserve /var/cache/softserve /var/lib/softserve
USER 999:999
VOLUME /var/cache/softserve /var/lib/softserve

# Other machines may reach it: it starts with SOFTSERVE_KEYS_FILE, or SOFTSERVE_ALLOW_ANONYMOUS=true.
EXPOSE 8000
HEALTHCHECK --interval=10s --start-period=300s --timeout=3s \
    CMD [".venv/bin/python", "-c", \
         "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health/ready', timeout=2)"]

ENTRYPOINT [".venv/bin/softserve", "serve"]
