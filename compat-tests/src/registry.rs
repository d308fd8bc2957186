//! Entries of Skynet's registry, made and signed here (`specs/skynet.md` 7), and a subscriber.

use futures::{SinkExt, StreamExt};
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::Gateway;
use crate::wire::{self, Answer};

/// Hosts that an entry is on at 6 + 3: 2e + 1 with e = 3.
pub const HOSTS_EACH: usize = 7;

/// Who owns entries.
pub struct Owner(Ed25519KeyPair);

/// One signed version of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: [u8; 32],
    pub datakey: [u8; 32],
    pub data: Vec<u8>,
    pub revision: u64,
    pub signature: [u8; 64],
}

fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut state = blake2b_simd::Params::new().hash_length(32).to_state();
    parts.iter().for_each(|part| {
        state.update(part);
    });
    state.finalize().as_bytes().try_into().expect("32 bytes were asked for")
}

impl Owner {
    pub fn new(seed: u8) -> Owner {
        Owner(Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).expect("any 32 bytes are a seed"))
    }

    /// An entry of type 1 under a data key made of a number.
    pub fn sign(&self, number: u64, data: &[u8], revision: u64) -> Entry {
        let datakey = hash(&[&number.to_le_bytes()]);
        let signed = hash(&[&datakey, &(data.len() as u64).to_le_bytes(), data, &revision.to_le_bytes()]);
        Entry {
            key: self.0.public_key().as_ref().try_into().expect("32 bytes"),
            datakey,
            data: data.to_vec(),
            revision,
            signature: self.0.sign(&signed).as_ref().try_into().expect("64 bytes"),
        }
    }
}

impl Entry {
    /// As skynet-js posts it.
    pub fn body(&self) -> String {
        json!({
            "publickey": { "algorithm": "ed25519", "key": self.key },
            "datakey": hex::encode(self.datakey),
            "revision": self.revision,
            "data": self.data,
            "signature": self.signature.to_vec(),
        })
        .to_string()
    }

    /// In hex, as names of files have it.
    pub fn id(&self) -> String {
        let mut algorithm = [0; 16];
        algorithm[..7].copy_from_slice(b"ed25519");
        hex::encode(hash(&[&algorithm, &32_u64.to_le_bytes(), &self.key, &self.datakey]))
    }

    pub fn public_key(&self) -> String {
        format!("ed25519:{}", hex::encode(self.key))
    }

    /// Path and query that it is read by.
    pub fn target(&self) -> String {
        format!("/skynet/registry?publickey={}&datakey={}", self.public_key(), hex::encode(self.datakey))
    }

    /// Is this what a read, or a push, tells of it?
    pub fn is_told_by(&self, told: &Value) -> bool {
        told["revision"] == self.revision
            && told["data"] == hex::encode(&self.data)
            && told["signature"] == hex::encode(self.signature)
            && told["datakey"] == hex::encode(self.datakey)
    }

    pub async fn post(&self, gateway: &Gateway) -> Answer {
        self.try_post(gateway).await.expect("an answer")
    }

    pub async fn try_post(&self, gateway: &Gateway) -> std::io::Result<Answer> {
        let host = gateway.public.trim_start_matches("http://");
        let body = self.body();
        let length = body.len();
        let head =
            format!("POST /skynet/registry HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
        wire::try_exchange(&gateway.public, (head + &body).as_bytes(), "POST").await
    }

    pub async fn read(&self, gateway: &Gateway) -> Answer {
        gateway.get(&self.target()).await
    }
}

/// Writes an entry, which has to be taken.
pub async fn put(gateway: &Gateway, entry: &Entry) {
    let answer = entry.post(gateway).await;
    assert_eq!(answer.status, 204, "{}\n{}", answer.text(), gateway.log());
}

/// The revision of the entry as it is read.
pub async fn revision(gateway: &Gateway, entry: &Entry) -> u64 {
    let answer = entry.read(gateway).await;
    assert_eq!(answer.status, 200, "{}\n{}", answer.text(), gateway.log());
    answer.json()["revision"].as_u64().expect("a revision")
}

/// A subscriber of entries.
pub struct Subscriber(pub WebSocketStream<TcpStream>);

impl Subscriber {
    pub async fn open(gateway: &Gateway, query: &str) -> Subscriber {
        let address = gateway.public.trim_start_matches("http://");
        let stream = TcpStream::connect(address).await.expect("connects");
        stream.set_nodelay(true).expect("a socket option");
        let url = format!("ws://{address}/skynet/registry/subscription{query}");
        let (socket, _) = tokio_tungstenite::client_async(url, stream).await.expect("a WebSocket");
        Subscriber(socket)
    }

    pub async fn subscribe(&mut self, entry: &Entry) {
        self.ask("subscribe", entry).await;
    }

    pub async fn unsubscribe(&mut self, entry: &Entry) {
        self.ask("unsubscribe", entry).await;
    }

    async fn ask(&mut self, action: &str, entry: &Entry) {
        let request = json!({ "action": action, "pubkey": entry.public_key(), "datakey": hex::encode(entry.datakey) });
        self.0.send(Message::text(request.to_string())).await.expect("sends");
    }

    /// Waits for the answer to a message that cannot be read: what was sent before has been heard then. Answers with what was
    /// told in between.
    pub async fn heard(&mut self) -> Vec<Value> {
        self.0.send(Message::text("{}")).await.expect("sends");
        let mut told = Vec::new();
        loop {
            let value = self.told().await;
            match value["error"].as_str() {
                Some("") | None => told.push(value),
                Some(_) => return told,
            }
        }
    }

    pub async fn told(&mut self) -> Value {
        loop {
            match self.0.next().await.expect("the connection is open").expect("a frame") {
                Message::Text(text) => return serde_json::from_str(&text).expect("JSON"),
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}
