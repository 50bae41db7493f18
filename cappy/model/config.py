"""What a published `config.json` says of the scorer's equations."""

import dataclasses

from cappy.errors import InputError
from cappy.model.layers import ACTIVATIONS

# XLM-R and CamemBERT are RoBERTa under other names; their checkpoints use the `roberta.` prefix too.
ROBERTA_TYPES = ('roberta', 'xlm-roberta', 'camembert')
MODEL_TYPES = (*ROBERTA_TYPES, 'bert')


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """What of a published `config.json` decides the scorer's equations."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    hidden_act: str
    pad_token_id: int
    hidden_dropout_prob: float
    attention_probs_dropout_prob: float
    classifier_dropout: float
    initializer_range: float

    @classmethod
    def from_published(cls, config, source):
        """The dict of a `config.json` -> EncoderConfig; `source` names the file in errors.

        Raises InputError for another kind of model, a missing field, or a setting these equations do not have.
        """
        model_type = config.get('model_type')
        if model_type not in MODEL_TYPES:
            raise InputError(f'{source}: model_type: found {model_type!r}; a scorer is one of {", ".join(MODEL_TYPES)}')
        positions = config.get('position_embedding_type', 'absolute')
        if positions not in (None, 'absolute'):
            raise InputError(f'{source}: position_embedding_type: found {positions!r}; only absolute is known')
        if config.get('hidden_act') not in ACTIVATIONS:
            raise InputError(
                f'{source}: hidden_act: found {config.get("hidden_act")!r}; known are {", ".join(ACTIVATIONS)}'
            )
        defaults = {
            'type_vocab_size': 2,
            'initializer_range': 0.02,
            'layer_norm_eps': 1e-12,
            'pad_token_id': 0,
        }
        values = {**defaults, **config}
        if values.get('classifier_dropout') is None:
            values['classifier_dropout'] = values.get('hidden_dropout_prob')
        names = [field.name for field in dataclasses.fields(cls)]
        missing = [name for name in names if values.get(name) is None]
        if missing:
            raise InputError(f'{source}: {missing[0]}: missing; a {model_type} config has it')
        if values['hidden_size'] % values['num_attention_heads']:
            raise InputError(
                f'{source}: num_attention_heads: {values["num_attention_heads"]} does not divide hidden_size '
                f'{values["hidden_size"]}'
            )
        return cls(**{name: values[name] for name in names})

    @property
    def prefix(self):
        """The base model's name, with which its tensors' names begin."""
        return 'bert' if self.model_type == 'bert' else 'roberta'

    @property
    def max_length(self):
        """Tokens of the longest pair that has a position for each token."""
        # RoBERTa counts positions from pad_token_id + 1 on, so that many of the table's rows are never used.
        unused = 0 if self.model_type == 'bert' else self.pad_token_id + 1
        return self.max_position_embeddings - unused

    @property
    def head_names(self):
        """Names of the head's hidden and output maps."""
        if self.model_type == 'bert':
            return 'bert.pooler.dense', 'classifier'
        return 'classifier.dense', 'classifier.out_proj'

    @property
    def drops_before_head(self):
        """RoBERTa's head drops what it reads, BERT's pooler does not."""
        return self.model_type != 'bert'

    @property
    def has_dropout(self):
        """Whether anything is dropped in training."""
        return max(self.hidden_dropout_prob, self.attention_probs_dropout_prob, self.classifier_dropout) > 0
