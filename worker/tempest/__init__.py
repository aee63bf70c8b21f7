"""A plug-in of Tempest: scenarios that prove a deployment of the worker. Needs the extra tempest."""
