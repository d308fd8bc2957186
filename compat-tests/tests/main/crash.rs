//! SIGKILL at random points of uploads and restarts: what was acknowledged reads back whole, what was not is whole or
//! not there.
//!
//! From outside a kill is *inside a commit* when the last byte of an upload has been sent and its reply has not come.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use compat_tests::content::{Added, Content, Seen};
use compat_tests::wire::{self, Answer};
use compat_tests::{Gateway, Options, Starting, Tier, seeded, tier};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;

/// Largest upload of a round.
const UPLOAD_BYTES_MAX: usize = 60 << 20;
/// Uploads under way when the kill comes.
const UPLOADS: usize = 3;
/// Of all kills, at least this many in a hundred must fall inside a commit.
const INSIDE_PERCENT_MIN: usize = 30;
/// Earlier uploads that are read again after each restart; all of them are at the end.
const EARLIER_READ: usize = 4;
/// Rounds on one data directory, so that the slow tier does not fill the disk: some 2 GiB.
const ROUNDS_A_FOLDER: usize = 50;

/// When the gateway is killed.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// When this share of the first upload's bytes has been sent.
    Sending(f64),
    /// After an upload's last byte, when this share of the time that quick commits take has gone by.
    Committing(f64),
    /// At once after the first upload's reply.
    Replied,
    /// While it starts, this share of what a start takes.
    Starting(f64),
}

impl Moment {
    /// Most kills are aimed at the commit; some of them come too late, when the commit was quick.
    fn random(random: &mut ChaCha8Rng) -> Moment {
        match random.random_range(0..100) {
            0..65 => Moment::Committing(random.random_range(0.0..1.5)),
            65..80 => Moment::Sending(random.random::<f64>()),
            80..90 => Moment::Replied,
            _ => Moment::Starting(random.random::<f64>()),
        }
    }
}

/// How far an upload has come, as seen from outside.
#[derive(Clone, Debug)]
enum Progress {
    Sending(usize),
    Sent,
    Answered(Box<Answer>),
    Failed,
}

struct Upload {
    content: Content,
    key: String,
    progress: watch::Receiver<Progress>,
    /// From the last byte sent to the reply, if both came to be.
    commit: Arc<OnceLock<Duration>>,
    all_sent: Arc<AtomicBool>,
}

/// Sends an upload in the background and tells how far it is.
fn start_upload(gateway: &Gateway, content: Content, key: String) -> Upload {
    let (tell, progress) = watch::channel(Progress::Sending(0));
    let stream = content.stream();
    let head = gateway.upload_head(stream.len() as u64, &[&format!("Idempotency-Key: {key}")]);
    let admin = gateway.admin.clone();
    let (commit, all_sent) = (Arc::new(OnceLock::new()), Arc::new(AtomicBool::new(false)));
    let (took, sent) = (commit.clone(), all_sent.clone());
    tokio::spawn(async move {
        let exchange = async {
            let mut socket = wire::connect(&admin).await?;
            socket.write_all(head.as_bytes()).await?;
            for (index, part) in stream.chunks(64 << 10).enumerate() {
                socket.write_all(part).await?;
                tell.send_replace(Progress::Sending((index + 1) * (64 << 10)));
            }
            sent.store(true, SeqCst);
            tell.send_replace(Progress::Sent);
            let sent_at = Instant::now();
            let answer = wire::read_answer(&mut socket, "POST").await?;
            let _ = took.set(sent_at.elapsed());
            Ok::<Answer, std::io::Error>(answer)
        };
        match exchange.await {
            Ok(answer) => tell.send_replace(Progress::Answered(Box::new(answer))),
            Err(_) => tell.send_replace(Progress::Failed),
        };
    });
    Upload { content, key, progress, commit, all_sent }
}

/// How many kills fell where.
#[derive(Debug, Default)]
struct Split {
    before: usize,
    inside_a_commit: usize,
    after: usize,
    starting: usize,
}

impl Split {
    fn all(&self) -> usize {
        self.before + self.inside_a_commit + self.after + self.starting
    }
}

struct Rounds {
    folder: tempfile::TempDir,
    random: ChaCha8Rng,
    split: Split,
    acknowledged: Vec<(Content, Added)>,
    unanswered_visible: usize,
    unanswered_absent: usize,
    /// What commits took here.
    commits: Vec<Duration>,
    /// What a start takes here, a running mean.
    start: Duration,
}

impl Rounds {
    fn options() -> Options {
        // Read back from the hosts, not from memory.
        Options::config("[store]\nmemory_bytes = 0\n")
    }

    fn start(&mut self) -> Gateway {
        let begun = Instant::now();
        let gateway = Gateway::start_with(self.folder.path(), &Rounds::options());
        self.start = (self.start + begun.elapsed()) / 2;
        gateway
    }

    async fn round(&mut self, number: usize, gateway: Gateway) -> Gateway {
        let moment = Moment::random(&mut self.random);
        let mut uploads: Vec<Upload> = (0..UPLOADS)
            .map(|index| {
                let content = Content::random(&mut self.random, &format!("{number}-{index}.bin"), UPLOAD_BYTES_MAX);
                start_upload(&gateway, content, format!("round {number} upload {index}"))
            })
            .collect();
        match moment {
            Moment::Sending(share) => {
                let enough = (uploads[0].content.size_bytes() as f64 * share) as usize;
                reach(&mut uploads[0], |progress| !matches!(progress, Progress::Sending(sent) if *sent < enough)).await;
            }
            Moment::Committing(share) => {
                let wait = self.quick_commit().mul_f64(share);
                let upload = &mut uploads[0];
                reach(upload, |progress| !matches!(progress, Progress::Sending(_))).await;
                let answered = reach(upload, |progress| matches!(progress, Progress::Answered(_) | Progress::Failed));
                let _ = tokio::time::timeout(wait, answered).await;
            }
            Moment::Replied | Moment::Starting(_) => {
                reach(&mut uploads[0], |progress| matches!(progress, Progress::Answered(_) | Progress::Failed)).await;
            }
        }
        gateway.kill();
        for upload in &mut uploads {
            // The connection is gone: the last word has been said.
            reach(upload, |progress| matches!(progress, Progress::Answered(_) | Progress::Failed)).await;
            self.commits.extend(upload.commit.get());
        }
        self.count(moment, &uploads);
        if let Moment::Starting(share) = moment {
            self.kill_a_start(share).await;
        }
        let gateway = self.start();
        self.judge(uploads, &gateway).await;
        gateway
    }

    /// A quarter of the commits took less.
    fn quick_commit(&mut self) -> Duration {
        self.commits.sort();
        self.commits.get(self.commits.len() / 4).copied().unwrap_or(Duration::from_millis(5))
    }

    fn count(&mut self, moment: Moment, uploads: &[Upload]) {
        let cut = |upload: &Upload| upload.all_sent.load(SeqCst) && matches!(*upload.progress.borrow(), Progress::Failed);
        match (uploads.iter().any(cut), moment) {
            (true, _) => self.split.inside_a_commit += 1,
            (false, Moment::Replied | Moment::Committing(_) | Moment::Starting(_)) => self.split.after += 1,
            (false, Moment::Sending(_)) => self.split.before += 1,
        }
    }

    /// One more kill, of the start that follows.
    async fn kill_a_start(&mut self, share: f64) {
        let starting = Starting::spawn(self.folder.path(), &Rounds::options());
        let pid = starting.pid();
        let mut ready = tokio::task::spawn_blocking(move || starting.ready());
        let gateway = match tokio::time::timeout(self.start.mul_f64(share), &mut ready).await {
            Ok(ready) => ready.expect("no panic"),
            Err(_) => {
                compat_tests::signal(pid, "KILL");
                ready.await.expect("no panic")
            }
        };
        // Ready in spite of all, it dies now.
        drop(gateway);
        self.split.starting += 1;
    }

    async fn judge(&mut self, uploads: Vec<Upload>, gateway: &Gateway) {
        gateway.catalog_complete().await;
        for upload in uploads {
            let progress = upload.progress.borrow().clone();
            match progress {
                Progress::Answered(answer) => {
                    assert_eq!(answer.status, 200, "{}: {}", upload.content.name, answer.text());
                    let added = Added::of(&answer.json());
                    upload.content.assert_read_back(gateway, &added).await;
                    self.acknowledged.push((upload.content, added));
                }
                _ => {
                    match upload.content.seen(gateway).await {
                        Seen::Everything => self.unanswered_visible += 1,
                        Seen::Nothing => self.unanswered_absent += 1,
                        Seen::Torn(how) => panic!("{}: half visible: {how}\n{}", upload.content.name, gateway.log()),
                    }
                    self.send_again(upload, gateway).await;
                }
            }
        }
        for _ in 0..EARLIER_READ.min(self.acknowledged.len()) {
            let (content, added) = &self.acknowledged[self.random.random_range(0..self.acknowledged.len())];
            content.assert_read_back(gateway, added).await;
        }
    }

    /// What a client does whose reply never came: the same key again. There is one upload then, not two.
    async fn send_again(&mut self, upload: Upload, gateway: &Gateway) {
        if upload.content.size_bytes() > 4 << 20 && self.random.random_ratio(2, 3) {
            return;
        }
        let answer = gateway.upload_bytes(&upload.content.stream(), &[&format!("Idempotency-Key: {}", upload.key)]).await;
        assert_eq!(answer.status, 200, "{}: {}", upload.content.name, answer.text());
        let added = Added::of(&answer.json());
        assert_eq!(added.cid, upload.content.cid());
        let pins = gateway.admin_json("/api/v1/pins?limit=1000").await;
        let same = pins["pins"].as_array().expect("a list").iter().filter(|pin| pin["cid"] == added.cid.as_str()).count();
        assert_eq!(same, 1, "{} is pinned once", upload.content.name);
        self.acknowledged.push((upload.content, added));
    }
}

async fn reach(upload: &mut Upload, enough: impl Fn(&Progress) -> bool) {
    let waited = tokio::time::timeout(wire::ANSWER_MAX, upload.progress.wait_for(|progress| enough(progress))).await;
    // An error says that the sender has gone, after its last word.
    let _ = waited.unwrap_or_else(|_| panic!("{}: no progress", upload.content.name));
}

async fn rounds(count: usize, random: ChaCha8Rng) -> (Split, ChaCha8Rng) {
    let mut rounds = Rounds {
        folder: tempfile::tempdir().expect("a folder"),
        random,
        split: Split::default(),
        acknowledged: Vec::new(),
        unanswered_visible: 0,
        unanswered_absent: 0,
        commits: Vec::new(),
        start: Duration::from_millis(300),
    };
    let mut gateway = rounds.start();
    for number in 0..count {
        gateway = rounds.round(number, gateway).await;
    }
    for (content, added) in &rounds.acknowledged {
        content.assert_read_back(&gateway, added).await;
    }
    let quick_commit = rounds.quick_commit();
    println!(
        "{count} rounds: {} acknowledged uploads, all whole; of those without a reply {} were whole, {} absent; a quarter of the commits took under {:?}, a start {:?}",
        rounds.acknowledged.len(),
        rounds.unanswered_visible,
        rounds.unanswered_absent,
        quick_commit,
        rounds.start,
    );
    (rounds.split, rounds.random)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_at_random_points() {
    let mut left = match tier() {
        Tier::Fast => 3,
        Tier::Ci => 20,
        Tier::Slow => 200,
    };
    let mut random = seeded("kill_9_at_random_points");
    let mut split = Split::default();
    while left > 0 {
        let count = left.min(ROUNDS_A_FOLDER);
        let (more, source) = rounds(count, random).await;
        random = source;
        split.before += more.before;
        split.inside_a_commit += more.inside_a_commit;
        split.after += more.after;
        split.starting += more.starting;
        left -= count;
    }
    let percent = split.inside_a_commit * 100 / split.all();
    println!("{} kills: {split:?}; {percent} % inside a commit", split.all());
    if tier() > Tier::Fast {
        assert!(percent >= INSIDE_PERCENT_MIN, "only {percent} % of the kills fell inside a commit: {split:?}");
    }
}
