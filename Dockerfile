# coarse2fine in an image:
#   docker build --tag coarse2fine .
#   docker run --rm --gpus all --volume "$PWD:/data" coarse2fine -i scan.nii.gz -o labels.nii.gz -c KIT
# PyPI's PyTorch computes on NVIDIA's GPUs and on processors. For processors only, an image that is gigabytes smaller:
#   docker build --build-arg TORCH_INDEX=URL .      where URL is PyTorch's own package index of CPU builds
# These steps are run by CI, without Docker, in a new environment.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
WORKDIR /build
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY coarse2fine coarse2fine
COPY assignnet assignnet
COPY canvas canvas
COPY configs configs
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir wheel .

FROM python:${PYTHON}-slim
ARG TORCH_INDEX=
WORKDIR /install
COPY constraints.txt ./
COPY --from=build /build/wheel wheel
RUN python -m pip install --no-cache-dir --constraint constraints.txt \
    ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} "$(echo wheel/coarse2fine-*.whl)[cluster,dicom]"
# Results belong to whoever owns the folder: docker run --user "$(id -u):$(id -g)".
ENV HOME=/tmp
WORKDIR /data
ENTRYPOINT ["c2f-infer"]
CMD ["--help"]
