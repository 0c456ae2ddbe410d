// The site's search runs in a worker, and browsers start none for a page that was opened from the
// disk. There a hidden frame takes its place. Over a server the browser's own worker stays.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      const inner = this.frame.contentWindow;
      inner.document.open();  // or Firefox would replace the blank document, and the script with it
      inner.document.write("<!doctype html><title>search</title>");
      inner.document.close();
      inner.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      this.loaded = new Promise((resolve, reject) => {
        const script = inner.document.createElement("script");
        script.onload = resolve;
        script.onerror = () => reject(new Error(`${url} cannot be loaded; build the site again.`));
        script.src = url;
        inner.document.head.append(script);
      });
    }

    postMessage(data) {
      const deliver = () =>
        this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data }));
      this.loaded.then(deliver);
    }

    terminate() {
      this.frame.remove();
    }
  };
}
