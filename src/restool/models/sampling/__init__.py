"""Answers of a causal language model, sampled or greedy, with their log-probabilities and entropies."""

from restool.models.sampling.answers import Answers
from restool.models.sampling.sampler import Sampler, make_sampler

__all__ = ["Answers", "Sampler", "make_sampler"]
