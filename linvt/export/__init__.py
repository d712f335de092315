"""From a trained model's folder to one that is given away: LoRA merged on request, a card, a generation config."""
