//! The exit policy on a scripted CPU and machine.
