# The image of imagegate: `docker build --tag imagegate .`
#
# Three stages: the binary, the file system around it, and that file system alone. container/image builds the last one
# without the others, and tests/clients/test_container.py runs what comes out.
#
# For another architecture build on it, or under emulation: the second stage asks the loader which libraries are needed,
# so that a cross-compiled binary would need its target's loader anyway.
#
# The binary is built twice, for what runs in it most. `--build-arg PGO=off` builds it once, which takes a third of the time
# and is the way under emulation.
ARG RUST_IMAGE=rust:1.95-slim-trixie

FROM ${RUST_IMAGE} AS build
ARG TARGETARCH
ARG PGO=on
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/* \
    && rustup component add llvm-tools
WORKDIR /source
COPY . .
# The binary leaves the cached folder within the same step, as later steps do not see it.
RUN --mount=type=cache,target=/usr/local/cargo/registry,id=imagegate-registry,sharing=locked \
    --mount=type=cache,target=/source/target,id=imagegate-target-${TARGETARCH},sharing=locked \
    PGO=${PGO} container/binary /binary/imagegate

FROM build AS rootfs
ARG SOURCE_DATE_EPOCH=0
RUN container/rootfs /binary/imagegate /image

FROM scratch
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="imagegate" \
      org.opencontainers.image.description="The image-generation gateway: OpenAI Images API in, any image provider out, over gRPC" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=rootfs /image/root/ /
# Where `data_dir` points without a setting, as the working directory is /. A new volume takes over its owner.
COPY --from=rootfs --chown=65532:65532 /image/data/ /data/
WORKDIR /
# A number, so that Kubernetes can see that it is not root (runAsNonRoot).
USER 65532:65532
# HTTP, the router's gRPC, a worker's gRPC, probes and metrics.
EXPOSE 8787 50051 50061 9090
ENTRYPOINT ["/usr/local/bin/imagegate"]
# Listens on loopback only: who may call from outside is for a file to say (docs/container.md), not for the image.
CMD ["serve"]
