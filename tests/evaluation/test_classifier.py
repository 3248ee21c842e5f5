import torch

from ctm.data import load_images
from ctm.evaluation.classifier import train_classifier


def test_the_classifier_learns_the_digits_reproducibly():
    x, labels = load_images("digits").all()
    held_out = torch.arange(len(x)) % 5 == 0
    first = train_classifier(x[~held_out], labels[~held_out], steps=300)
    with torch.no_grad():
        accuracy = (first(x[held_out]).argmax(1) == labels[held_out]).float().mean().item()
        assert accuracy > 0.96
        assert first.features(x).shape == (1797, 64)
    second = train_classifier(x[~held_out], labels[~held_out], steps=5)
    third = train_classifier(x[~held_out], labels[~held_out], steps=5)
    for a, b in zip(second.parameters(), third.parameters(), strict=True):
        assert torch.equal(a, b)
