from django.apps import AppConfig


class EmbeddingsConfig(AppConfig):
    name = "sample_app.embeddings"
    label = "embeddings"
