/**
 * Getting things out of the page: the Parquet file as a download, text to the clipboard. Both work from disk, with no
 * network and no server. It must never change a byte of the file. Called by main.
 */

import { h } from './dom.js';

/** @param {Uint8Array} bytes @param {string} name */
export function saveBytes(bytes, name) {
  const url = URL.createObjectURL(new Blob([/** @type {BlobPart} */ (bytes)], { type: 'application/vnd.apache.parquet' }));
  const link = h('a', { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  // The browser reads the blob after the click returns; a minute is far more than it needs.
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** @param {string} text @returns {Promise<boolean>} */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // No clipboard API for this page: the old way, through a selected text field.
  }
  const field = /** @type {HTMLTextAreaElement} */ (h('textarea', { class: 'hidden', 'aria-hidden': 'true' }));
  field.value = text;
  document.body.append(field);
  field.select();
  const done = document.execCommand('copy');
  field.remove();
  return done;
}
