"""The vectors of t and s, with the condition in them: what MLP, DiT and UNet1d have in common."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ctm.conditions import Condition
from ctm.networks.base import GuidanceEmbedding, LabelEmbedding, LevelEmbedding, Network, add_rows, song_features
from ctm.networks.fields import Fields, Shapes

__all__ = ["VectorNetwork"]


class VectorNetwork(Network):
    """A network whose layers are told t, s, label, fields and guidance scale by two vectors of `embedding` numbers."""

    def _build_vectors(
        self,
        shape: Sequence[int],
        num_classes: int,
        embedding: int,
        arrays: Shapes | None,
        *,
        s_embedding: bool,
        guidance_embedding: bool,
    ) -> None:
        """The embeddings; s_embedding: whether there is an s branch; arrays: fields as of `ctm.networks.fields.Fields`."""
        self.conditions = Fields(arrays, shape, embedding)
        self.features = embedding
        self.t_embedding = LevelEmbedding(embedding, embedding)
        self.s_embedding = LevelEmbedding(embedding, embedding) if s_embedding else None
        self.label_embedding = LabelEmbedding(num_classes, embedding) if num_classes else None
        self.guidance_embedding = GuidanceEmbedding(embedding, embedding) if guidance_embedding else None

    def _vectors(self, t: Tensor, s: Tensor | None, condition: Condition) -> tuple[Tensor, Tensor | None]:
        """The level vectors (B, embedding) of t and s, None without s or without an s branch. The condition's rows are in
        both, the guidance scale in that of t."""
        label_row = None if self.label_embedding is None else self.label_embedding(condition, t.shape[0])
        row = add_rows(label_row, self.conditions.row(condition, t.shape[0]))
        guidance = None if self.guidance_embedding is None else self.guidance_embedding(condition, t)
        t_vector = self.t_embedding(song_features(t, self.features), add_rows(row, guidance))
        if self.s_embedding is None or s is None:
            return t_vector, None
        return t_vector, self.s_embedding(song_features(s, self.features), row)
