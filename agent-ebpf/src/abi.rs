//! The ABI shared by the kernel programs and the agent.
#![no_std]
