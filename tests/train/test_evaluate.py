"""The kNN monitor against a loop over every pair."""

from __future__ import annotations

import math

import torch

from stabilitylab.train.evaluate import knn_predict


def naive_knn(bank: torch.Tensor, labels: torch.Tensor, queries: torch.Tensor, k: int, temperature: float) -> list[int]:
    predicted = []
    for query in queries.tolist():
        similarities = []
        for row, label in zip(bank.tolist(), labels.tolist(), strict=True):
            dot = sum(a * b for a, b in zip(query, row, strict=True))
            lengths = math.sqrt(sum(a * a for a in query)) * math.sqrt(sum(b * b for b in row))
            similarities.append((dot / lengths, label))
        votes: dict[int, float] = {}
        for similarity, label in sorted(similarities, reverse=True)[:k]:
            votes[label] = votes.get(label, 0.0) + math.exp(similarity / temperature)
        predicted.append(max(votes, key=votes.__getitem__))
    return predicted


def test_weighted_knn_equals_plain_loops() -> None:
    torch.manual_seed(0)
    bank, queries = torch.randn(60, 6, dtype=torch.float64), torch.randn(40, 6, dtype=torch.float64)
    labels = torch.randint(0, 4, (60,))
    got = knn_predict(bank, labels, queries, k=7, temperature=0.07, num_classes=4)
    assert got.tolist() == naive_knn(bank, labels, queries, 7, 0.07)


def test_k_larger_than_the_bank_uses_the_whole_bank() -> None:
    bank, labels = torch.eye(3), torch.tensor([0, 1, 2])
    assert knn_predict(bank, labels, torch.eye(3), k=20, temperature=0.07, num_classes=3).tolist() == [0, 1, 2]
