//! How big the replicated state may get.
//!
//! Limits are part of the machine's rules: all members must run with equal ones, or the same log would lead to
//! different states. That is why they are one value that a cluster sets once, and not scattered constants.

/// The limits of one cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Workers that are remembered, fenced ones included; the longest fenced one makes room for a new one.
    pub workers_max: u32,
    /// Live pins of all tenants.
    pub pins_max: u32,
    /// Live pins of one tenant.
    pub pins_per_tenant_max: u32,
    /// Blocks of one pin.
    pub pin_blocks_max: u32,
    /// Blocks of all live pins, each pin counted in full: what the pins cost in memory.
    pub pinned_blocks_max: u64,
    /// Different blocks that one tenant's live pins name; a block in several pins counts once.
    pub pinned_blocks_per_tenant_max: u64,
    /// What the tokens that one pin keeps may take, packed.
    pub pin_token_bytes_max: u32,
    /// What the tokens that all live pins keep may take.
    pub kept_token_bytes_max: u64,
    /// What the tokens that one tenant's live pins keep may take.
    pub kept_token_bytes_per_tenant_max: u64,
    /// The longest TTL of a pin.
    pub ttl_ms_max: u64,
    /// Blocks in the index, each counted once per worker that holds it.
    pub index_blocks_max: u64,
    /// Tenants that have a quota or keys in the log.
    pub tenants_max: u32,
    /// Keys of all tenants.
    pub keys_max: u32,
    /// Keys of one tenant.
    pub keys_per_tenant_max: u32,
    /// Join tokens, used and expired ones included; the longest expired one makes room for a new one.
    pub join_tokens_max: u32,
    /// What one stored response's payload may take.
    pub response_payload_bytes_max: u32,
    /// What all stored responses may take.
    pub response_bytes_max: u64,
    /// What one tenant's stored responses may take.
    pub response_bytes_per_tenant_max: u64,
    /// Responses of one chain, each the one before's continuation.
    pub response_chain_max: u32,
}

impl Limits {
    /// Limits for a cluster of ordinary size: pins and index stay within a few gigabytes when all are reached.
    ///
    /// 8,192 workers; 65,536 pins, 16,384 a tenant; 131,072 blocks a pin (two million tokens at 16 a block);
    /// 8,388,608 pinned blocks, 1,048,576 a tenant; kept tokens of 2 MiB a pin, 64 MiB, 16 MiB a tenant (two or
    /// three bytes a token); a TTL of a day; 16,777,216 blocks in the index;
    /// 4,096 tenants with 16,384 keys, 64 a tenant; 1,024 join tokens; stored responses of 1 MiB each, 64 MiB, 16 MiB
    /// a tenant, in chains of 1,024.
    #[must_use]
    pub const fn standard() -> Self {
        Self {
            workers_max: 8_192,
            pins_max: 65_536,
            pins_per_tenant_max: 16_384,
            pin_blocks_max: 131_072,
            pinned_blocks_max: 8_388_608,
            pinned_blocks_per_tenant_max: 1_048_576,
            pin_token_bytes_max: 2 << 20,
            kept_token_bytes_max: 64 << 20,
            kept_token_bytes_per_tenant_max: 16 << 20,
            ttl_ms_max: 24 * 60 * 60 * 1_000,
            index_blocks_max: 16_777_216,
            tenants_max: 4_096,
            keys_max: 16_384,
            keys_per_tenant_max: 64,
            join_tokens_max: 1_024,
            response_payload_bytes_max: 1 << 20,
            response_bytes_max: 64 << 20,
            response_bytes_per_tenant_max: 16 << 20,
            response_chain_max: 128,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::standard()
    }
}
