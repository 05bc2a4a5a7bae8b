"""`edgekit check`: what `convert` would do with a model and a target, and why, before any work.

A worker surveys the source (`surveyors`); what a runtime takes is decided on tables that were measured
(`verdicts`); `outlook` puts both together. This module imports nothing: tasks carry what a survey finds.
"""
