"""Word error rate of KerasHub's Whisper on LibriSpeech."""
