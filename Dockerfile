# The image of the service, for compose.yaml and any container host.
FROM python:3.11-slim
ENV PYTHONUNBUFFERED=1
WORKDIR /app
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
COPY . .
USER nobody
# The Procfile's line becomes process 1, so that the stop signal reaches the server itself.
CMD ["sh", "-c", "eval \"exec $(sed -n 's/^web: //p' Procfile)\""]
