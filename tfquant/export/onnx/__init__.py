"""ONNX export: conversion, QuantizeLinear/DequantizeLinear, fusion, and the rules of TensorRT."""
