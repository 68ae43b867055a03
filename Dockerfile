# The gate as an image: no compiler, no package installer, no root, nothing that is written to.
#
#   docker build -t oncegate .
#
# PYTHON_IMAGE is what it runs on, so that a mirror or a hardened image can take its place; BUILD_IMAGE what it is
# made on: a Debian with the same Python at the same path. An index of your own is PIP_INDEX_URL; the authorities that
# pip should trust (a proxy's, say) go into trust.pem beside this file. Neither reaches the last stage. EXTRAS=otel brings
# what traces need (docs/tracing.md), EXTRAS=jwt what scopes by tokens need (docs/scopes.md), EXTRAS=jwt,otel both; without
# them the image is some 20 and 15 MB smaller.
ARG PYTHON_IMAGE=python:3.13-slim
ARG BUILD_IMAGE=${PYTHON_IMAGE}

FROM ${BUILD_IMAGE} AS build
LABEL oncegate.stage=build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_DEFAULT_TIMEOUT
ARG EXTRAS
RUN apt-get update && apt-get install --yes --no-install-recommends binutils
WORKDIR /src
# The bracket lets trust.pem be absent.
COPY pyproject.toml requirements.lock README.md LICENSE trust.pe[m] ./
COPY gateway gateway
# Wheels carry symbols for debuggers, more than half of their size, and what they were made from; a file system that is read only keeps no bytecode, so it is
# made here, and never compared with its source again.
RUN if [ -f trust.pem ]; then export PIP_CERT=/src/trust.pem; fi \
 && python3 -m venv /opt/oncegate \
 && /opt/oncegate/bin/python -m pip install --no-cache-dir --no-compile --constraint requirements.lock ".${EXTRAS:+[$EXTRAS]}" \
 && /opt/oncegate/bin/python -m pip uninstall --yes pip \
 && rm -rf /opt/oncegate/lib/python3*/site-packages/setuptools* /opt/oncegate/lib/python3*/site-packages/pkg_resources \
 && find /opt/oncegate -type f -regex '.*\.\(pyx\|pxd\|pxi\|pyi\|c\|h\|hash\)' -delete \
 && find /opt/oncegate -name '*.so' -exec strip --strip-unneeded {} + \
 && python3 -m compileall -q --invalidation-mode unchecked-hash /opt/oncegate/lib

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="Oncegate" \
      org.opencontainers.image.description="One key, one effect, the same answer: an idempotency gateway." \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/oncegate /opt/oncegate
ENV PATH=/opt/oncegate/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# A number, not a name: Kubernetes' runAsNonRoot can check it.
USER 10001:10001
EXPOSE 8080 8081
# Is it alive? A store that is away does not make it ill: unguarded requests do not need one.
HEALTHCHECK --interval=5s --timeout=3s --start-period=5s CMD ["python3", "-c", "\
import http.client, sys; \
admin = http.client.HTTPConnection('127.0.0.1', 8081, timeout=2); \
admin.request('GET', '/live'); \
sys.exit(admin.getresponse().status != 200)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["oncegate"]
CMD ["run", "--config", "/etc/oncegate/gateway.yaml"]
