//! A headless Chromium, told what to do over its debugging pipe (Chrome DevTools Protocol: JSON, each message ended
//! by a zero byte). Waiting is for events and promises, never for time; a browser that says nothing for
//! [`ANSWER_MAX`] fails the test.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use base64::Engine;
use serde_json::{Value, json};

/// A page of hundreds of requests on a busy machine takes seconds; this is for browsers that hang.
const ANSWER_MAX: Duration = Duration::from_secs(120);

/// One browser with one tab. Killed when dropped.
pub struct Browser {
    child: Child,
    to: ChildStdin,
    from: Receiver<Value>,
    next_id: u64,
    session: String,
    /// Events since the last [`Browser::open`].
    events: Vec<Value>,
    _profile: tempfile::TempDir,
}

/// A reply that the tab received.
#[derive(Clone, Debug)]
pub struct Received {
    pub url: String,
    pub status: u64,
}

impl Browser {
    /// Starts `chromium` with a profile of its own; `None` where there is none.
    pub fn start() -> Option<Browser> {
        let found = Command::new("chromium").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !found.is_ok_and(|status| status.success()) {
            println!("SKIPPED chromium is not installed");
            return None;
        }
        let profile = tempfile::tempdir().expect("a temporary folder can be made");
        // The browser reads commands from descriptor 3 and answers on 4: a shell puts our pipes there.
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "exec \"$@\" 3<&0 4>&1 0</dev/null 1>&2",
            "sh",
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
        ]);
        command.args([
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ]);
        command.args([
            "--no-proxy-server",
            "--mute-audio",
            "--autoplay-policy=no-user-gesture-required",
            "--remote-debugging-pipe",
        ]);
        command.arg(format!("--user-data-dir={}", profile.path().display())).arg("about:blank");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("a shell can be started");
        let to = child.stdin.take().expect("piped");
        let messages = BufReader::new(child.stdout.take().expect("piped")).split(0);
        let (give, from) = channel();
        std::thread::spawn(move || {
            for message in messages.map_while(Result::ok) {
                let message = serde_json::from_slice(&message).expect("the browser speaks JSON");
                if give.send(message).is_err() {
                    return;
                }
            }
        });
        let mut browser = Browser { child, to, from, next_id: 0, session: String::new(), events: Vec::new(), _profile: profile };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }));
        let session = browser.call("Target.attachToTarget", json!({ "targetId": target["targetId"], "flatten": true }));
        browser.session = session["sessionId"].as_str().expect("a session has a name").to_owned();
        for domain in ["Page", "Network", "Runtime"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        Some(browser)
    }

    /// Opens an address and waits for the page's load event.
    pub fn open(&mut self, url: &str) {
        self.events.clear();
        let opened = self.call("Page.navigate", json!({ "url": url }));
        assert!(opened["errorText"].is_null(), "{url}: {}", opened["errorText"]);
        // Another place on the same page is no new document, and has no load event.
        if !opened["loaderId"].is_null() {
            self.loaded();
        }
    }

    /// Clicks what a CSS selector finds first, and waits for the page behind it.
    pub fn follow(&mut self, selector: &str) {
        self.events.clear();
        self.evaluate(&format!("document.querySelector({}).click()", Value::from(selector)));
        self.loaded();
    }

    /// Loads the page anew, as the browser's button does, and waits for it.
    pub fn reload(&mut self) {
        self.events.clear();
        self.call("Page.reload", json!({}));
        self.loaded();
    }

    fn loaded(&mut self) {
        while !self.events.iter().any(|event| event["method"] == "Page.loadEventFired") {
            let event = self.receive();
            self.events.push(event);
        }
    }

    /// Runs a script in the page and returns what it, or its promise, gives.
    pub fn evaluate(&mut self, script: &str) -> Value {
        let told = self.call("Runtime.evaluate", json!({ "expression": script, "awaitPromise": true, "returnByValue": true }));
        assert!(told["exceptionDetails"].is_null(), "{script}: {}", told["exceptionDetails"]);
        told["result"]["value"].clone()
    }

    /// The same as text; empty if it gives none.
    pub fn text(&mut self, script: &str) -> String {
        self.evaluate(script).as_str().unwrap_or_default().to_owned()
    }

    /// Sets the size of the window, as a phone's or a desk's.
    pub fn window(&mut self, width: u32, height: u32) {
        let mobile = width < 600;
        self.call(
            "Emulation.setDeviceMetricsOverride",
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile }),
        );
    }

    /// Writes what the window shows as PNG; returns its length in bytes.
    pub fn screenshot(&mut self, path: &Path) -> usize {
        let shot = self.call("Page.captureScreenshot", json!({ "format": "png" }));
        let png = base64::engine::general_purpose::STANDARD.decode(shot["data"].as_str().expect("a picture")).expect("base64");
        std::fs::write(path, &png).expect("the picture can be written");
        png.len()
    }

    /// Replies since the last `open` or `follow`, without those for pages' icons, which browsers ask for by themselves.
    pub fn received(&self) -> Vec<Received> {
        let replies = self
            .events
            .iter()
            .filter(|event| event["method"] == "Network.responseReceived")
            .map(|event| &event["params"]["response"]);
        let replies = replies.map(|reply| Received {
            url: reply["url"].as_str().unwrap_or_default().to_owned(),
            status: reply["status"].as_u64().unwrap_or_default(),
        });
        replies.filter(|reply| !reply.url.ends_with("/favicon.ico")).collect()
    }

    /// Scripts' errors since the last `open` or `follow`.
    pub fn script_errors(&self) -> Vec<String> {
        let thrown = self.events.iter().filter(|event| event["method"] == "Runtime.exceptionThrown");
        thrown.map(|event| event["params"]["exceptionDetails"].to_string()).collect()
    }

    fn call(&mut self, method: &str, params: Value) -> Value {
        self.next_id += 1;
        let mut message = json!({ "id": self.next_id, "method": method, "params": params });
        if !self.session.is_empty() {
            message["sessionId"] = self.session.clone().into();
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.to.write_all(&bytes).expect("the browser reads its commands");
        loop {
            let mut answer = self.receive();
            if answer["id"] == self.next_id {
                assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                return answer["result"].take();
            }
            self.events.push(answer);
        }
    }

    fn receive(&mut self) -> Value {
        self.from.recv_timeout(ANSWER_MAX).unwrap_or_else(|error| panic!("the browser says nothing: {error}"))
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
