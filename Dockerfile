# tokvid with the shipped weights; the command is the entry point, and /work is yours:
#
#     docker build --tag tokvid .                                    # for CPUs
#     docker build --tag tokvid:cuda --build-arg EXTRAS=cuda13 .     # for NVIDIA GPUs (or cuda12)
#     docker run --rm tokvid doctor
#     docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/work" tokvid demo
#     docker run --rm --gpus all --user "$(id -u):$(id -g)" --volume "$PWD:/work" tokvid:cuda \
#         train tokenizer configs/quickstart.py --workdir runs/quickstart    # in a checkout, which has the recipes
#
# JAX's packages bring CUDA's libraries; the host has the driver and NVIDIA's container toolkit.

ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS wheel
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /dist .

FROM python:${PYTHON}-slim
ARG EXTRAS=""
# Chinese captions of contact sheets
RUN apt-get update \
    && apt-get install --yes --no-install-recommends fonts-noto-cjk \
    && rm -rf /var/lib/apt/lists/*
COPY --from=wheel /dist /dist
RUN pip install --no-cache-dir "$(echo /dist/*.whl)${EXTRAS:+[$EXTRAS]}" \
    && rm -r /dist
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Any user may run it: caches go where all may write.
ENV XDG_CACHE_HOME=/cache HOME=/work
RUN mkdir --mode=1777 /cache /work
WORKDIR /work
ENTRYPOINT ["tokvid"]
CMD ["--help"]
