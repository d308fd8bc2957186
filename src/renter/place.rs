//! PLACEHOLDER (dropped at the merge).
use super::host::HostId;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRow {
    pub id: HostId,
    pub zone: String,
    pub weight: u16,
    pub state: String,
}
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostTable {
    pub epoch: u64,
    pub hosts: Vec<HostRow>,
}
pub fn place(table: &HostTable, id: &[u8; 32], n: usize) -> Vec<usize> {
    let mut rest: Vec<usize> = Vec::new();
    let mut out = Vec::new();
    for position in 0..n {
        if rest.is_empty() {
            rest = (0..table.hosts.len()).collect();
        }
        let best = (0..rest.len())
            .min_by_key(|i| {
                let host = &table.hosts[rest[*i]];
                blake2b_simd::blake2b(&[&id[..], &[position as u8], &host.id.0].concat()).as_bytes()[..8].to_vec()
            })
            .expect("not empty");
        out.push(rest.swap_remove(best));
    }
    out
}
