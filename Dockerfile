# The image of the service, for compose.yaml and any container host. .dockerignore lists what goes into it.
FROM python:3.11.16-slim-bookworm
ENV PYTHONUNBUFFERED=1
WORKDIR /app
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
COPY . .
USER nobody
EXPOSE 8000
# Whether the process answers. It does not ask the database: a restart would not mend that.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ.get(\"PORT\") or 8000}/healthz', timeout=4)"]
# The Procfile's line becomes process 1, so that the stop signal reaches the server itself.
CMD ["sh", "-c", "eval \"exec $(sed -n 's/^web: //p' Procfile)\""]
