# The gate as an image: no compiler, no shell history, no root. The base is an argument, so that a mirror
# or a hardened Python image can take its place.
ARG PYTHON_IMAGE=python:3.13-slim

FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY gateway gateway
RUN python3 -m venv /opt/oncegate \
 && /opt/oncegate/bin/python -m pip install --no-cache-dir --no-compile --constraint requirements.lock . \
 && /opt/oncegate/bin/python -m pip uninstall --yes pip

FROM ${PYTHON_IMAGE}
COPY --from=build /opt/oncegate /opt/oncegate
ENV PATH=/opt/oncegate/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# A number, not a name: Kubernetes' runAsNonRoot can check it.
USER 10001:10001
EXPOSE 8080 8081
HEALTHCHECK --interval=5s --timeout=2s --start-period=5s \
  CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8081/live', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["oncegate"]
CMD ["run", "--config", "/etc/oncegate/gateway.yaml"]
