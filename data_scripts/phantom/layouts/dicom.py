"""DICOM files as the RSNA pneumonia challenge ships them: 8 bit, MONOCHROME2, JPEG baseline."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import config
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, JPEGBaseline8Bit, SecondaryCaptureImageStorage

_UID_ROOT = "1.2.826.0.1.3680043.10.1453"
_IMPLEMENTATION_UID = UID(f"{_UID_ROOT}.1")


def write_dicom(path: Path, pixels: np.ndarray, tags: Mapping[str, str], *, key: int) -> None:
    """Write one grey image; the same arguments give the same bytes.

    Args:
        path: File to write.
        pixels: ``(H, W)`` uint8.
        tags: DICOM keywords to values, all text; must hold PatientID and ``InstanceNumber``. An age may be a plain
            number, as in the challenges' files, though the standard asks for a unit.
        key: A number of the dataset, so that no identifier is in two of them.
    """
    stem = f"{_UID_ROOT}.{key}.{int(tags['InstanceNumber']) + 1}"
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = UID(f"{stem}.3")
    meta.TransferSyntaxUID = JPEGBaseline8Bit
    meta.ImplementationClassUID = _IMPLEMENTATION_UID
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = UID(f"{stem}.3")
    dataset.StudyInstanceUID = UID(f"{stem}.1")
    dataset.SeriesInstanceUID = UID(f"{stem}.2")
    dataset.StudyDate = "19010101"
    dataset.StudyTime = "000000.00"
    dataset.AccessionNumber = ""
    dataset.Modality = "CR"
    dataset.ConversionType = "WSD"
    dataset.ReferringPhysicianName = ""
    dataset.PatientBirthDate = ""
    dataset.BodyPartExamined = "CHEST"
    dataset.StudyID = ""
    dataset.SeriesNumber = "1"
    dataset.PatientOrientation = ""
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated = 8
    dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelRepresentation = 0
    dataset.LossyImageCompression = "01"
    dataset.LossyImageCompressionMethod = "ISO_10918_1"
    for keyword, value in tags.items():
        tag = tag_for_keyword(keyword)
        dataset[tag] = DataElement(tag, dictionary_VR(tag), value, validation_mode=config.IGNORE)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="JPEG", quality=95)
    dataset.PixelData = encapsulate([stream.getvalue()])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path, enforce_file_format=True)
