# sacl with CUDA, or for CPUs alone: docs/how-to/install.md says how to build and run it.
FROM python:3.12-slim

# An index of other builds of torch, such as those for CPUs; the usual builds hold CUDA.
ARG TORCH_INDEX=""

WORKDIR /opt/sacl
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
RUN torch="$(sed -n 's/^torch==/torch==/p' constraints.txt)" \
 && pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$torch" \
 && pip install --no-cache-dir --constraint constraints.txt ".[node]" \
 && sacl --version

# Any user may run it: caches go to a folder that everybody can write.
RUN install --directory --owner 1000 --group 1000 /var/lib/sacl /data
ENV HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /data
USER 1000:1000
ENTRYPOINT ["sacl"]
CMD ["--help"]
