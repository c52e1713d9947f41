"""From a layer's output to a map: formulas, those that cost forwards, guided backpropagation."""
