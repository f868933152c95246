/* Opened as a file, a page may not start a worker, which the search runs in: a hidden frame does
   the same work. Where the site is served, nothing is changed. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      const loaded = new Promise((done) => this.frame.addEventListener("load", done));
      this.frame.srcdoc = `<script>
        window.postMessage = (data) => parent.dispatchEvent(
          new MessageEvent("frame-worker", { data, source: window }));
        window.importScripts = (...urls) => urls.reduce((before, url) => before.then(
          () => new Promise((done) => {
            const script = document.createElement("script");
            script.src = url;
            script.onload = done;
            document.body.appendChild(script);
          })), Promise.resolve());
      </script><body><script src="${url}"></script></body>`;
      window.addEventListener("frame-worker", (event) => {
        if (event.source === this.frame.contentWindow) {
          this.dispatchEvent(new MessageEvent("message", { data: event.data }));
        }
      });
      document.body.appendChild(this.frame);  // last: an empty frame would be loaded at once
      this.ready = loaded;
    }

    postMessage(data) {
      this.ready.then(() => {
        this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data }));
      });
    }

    terminate() {
      this.frame.remove();
    }
  };
}
